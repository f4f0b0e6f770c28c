"""Three command lines for each mode, which its help ends with; {} stands for the words that start the program."""

_WORDS = {
    "cluster": ("--arch=vgg16 --num_clusters=64", "--root photos", "--model=fast --root photos"),
    "train": ("--arch=alexnet --nEpochs=5", "--resume", "--root photos --dataset=folder --rerank 50"),
    "distill": ("--teacher=RUN", "--teacher=A.onnx", "--teacher=A.onnx --model=fast"),
    "test": ("--split=val", "--resume --split=test --rerank 50", "--resume=model.onnx --root photos"),
    "whiten": ("--resume", "--resume --pcaDim=512", "--arch=vgg16 --pcaDim=4096"),
    "adapt": ("--root photos", "--model=fast --root photos", "--resume"),
    "prune": ("--resume", "--resume --pruneRatio=0.3", "--resume --distill=0"),
    "export": ("--resume", "--resume --quantize=int8 --localDescriptors", "--model=fast --out=fast.onnx"),
    "compare": ("runs/RUN model.onnx", "model.onnx --split=test --rerank 50",
                "model.onnx --root photos --dataset=folder"),
    "spec": ("--dataset=folder --root photos", "--dataset=toy", "--dataset=msls --root msls"),
    "index": ("--root photos", "--resume --add /media/card/DCIM", "--root photos --localDescriptors"),
    "locate": ("--root photos image.jpg", "--resume --near=40.4393,-79.9967,500 image.jpg",
               "--resume=model.onnx --root photos --json frames/"),
    "serve": ("--root photos", "--resume --writable",
              "--resume=model.onnx --root photos --host=0.0.0.0 --token=word.txt"),
    "import": ("model.mat", "model.mat --runsPath=runs", "model.mat --seed=1"),
}  # fmt: skip
EXAMPLES = {mode: tuple(f"{{}} {mode} {words}" for words in lines) for mode, lines in _WORDS.items()}
