"""Entry point of torch.hub: torch.hub.load("OWNER/REPOSITORY", "netvlad", checkpoint="runs/RUN")."""

dependencies = ["torch", "torchvision", "faiss", "numpy", "scipy", "h5py", "PIL", "tqdm"]


def netvlad(checkpoint: str, whitened: bool = True, device: str = "auto"):
    """A trained model: a module from images uint8 [B, 3, H, W] to descriptors, with `describe_files(files)`.

    Args:
        checkpoint: a run's folder, or an exported FILE.onnx.
        whitened: with the run's whitening, if it has one.
        device: auto, cpu, cuda, ...
    """
    from vpr.api import load_describer

    return load_describer(checkpoint, whitened, device)
