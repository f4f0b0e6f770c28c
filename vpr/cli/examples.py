"""Three command lines for each mode, which its help ends with; {} stands for the words that start the program."""

EXAMPLES = {
    "cluster": (
        "{} cluster --arch=vgg16 --num_clusters=64",
        "{} cluster --root photos",
        "{} cluster --model=fast --root photos",
    ),
    "train": (
        "{} train --arch=alexnet --nEpochs=5",
        "{} train --resume",
        "{} train --root photos --dataset=folder --rerank 50",
    ),
    "distill": ("{} distill --teacher=RUN", "{} distill --teacher=A.onnx", "{} distill --teacher=A.onnx --model=fast"),
    "test": (
        "{} test --split=val",
        "{} test --resume --split=test --rerank 50",
        "{} test --resume=model.onnx --root photos",
    ),
    "whiten": ("{} whiten --resume", "{} whiten --resume --pcaDim=512", "{} whiten --arch=vgg16 --pcaDim=4096"),
    "adapt": ("{} adapt --root photos", "{} adapt --model=fast --root photos", "{} adapt --resume"),
    "prune": ("{} prune --resume", "{} prune --resume --pruneRatio=0.3", "{} prune --resume --distill=0"),
    "export": (
        "{} export --resume",
        "{} export --resume --quantize=int8 --localDescriptors",
        "{} export --model=fast --out=fast.onnx",
    ),
    "compare": (
        "{} compare runs/RUN model.onnx",
        "{} compare model.onnx --split=test --rerank 50",
        "{} compare model.onnx --root photos --dataset=folder",
    ),
    "spec": ("{} spec --dataset=folder --root photos", "{} spec --dataset=toy", "{} spec --dataset=msls --root msls"),
    "index": (
        "{} index --root photos",
        "{} index --resume --add /media/card/DCIM",
        "{} index --root photos --localDescriptors",
    ),
    "locate": (
        "{} locate --root photos image.jpg",
        "{} locate --resume --near=40.4393,-79.9967,500 image.jpg",
        "{} locate --resume=model.onnx --root photos --json frames/",
    ),
    "serve": (
        "{} serve --root photos",
        "{} serve --resume --writable",
        "{} serve --resume=model.onnx --root photos --host=0.0.0.0 --token=word.txt",
    ),
    "import": ("{} import model.mat", "{} import model.mat --runsPath=runs", "{} import model.mat --seed=1"),
}
