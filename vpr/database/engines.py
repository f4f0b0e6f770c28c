"""The engines by name, and which is meant; without torch, for the command line."""

from dataclasses import dataclass

# Each module has `open_engine(source, wanted, anew)`; see `vpr.database.engine`.
ENGINES = {"faiss": "vpr.database.faiss_engine", "milvus": "vpr.database.milvus.engine"}
FORMS = {"faiss": ("faiss",), "milvus": ("milvus:FILE.db", "milvus:http://HOST:19530")}  # what --engine may be


@dataclass(frozen=True)
class EngineAddress:
    """Which engine: one beside the model, or one in another file or on a server."""

    kind: str = "faiss"  # a key of ENGINES
    target: str = ""  # file, or address of a server; empty where it lies beside the model

    @property
    def is_server(self) -> bool:
        """Whether it is reached over the network."""
        return "://" in self.target


def engine_address(text: str) -> EngineAddress:
    """Reads the name of an engine, with a file or a server's address where it wants one.
    Raises a ValueError: it is none of FORMS."""
    kind, _, target = text.partition(":")
    for form in FORMS.get(kind, ()):
        wanted = form.partition(":")[2]
        server = wanted.startswith("http://") and target.startswith(("http://", "https://"))
        file = wanted.startswith("FILE") and target.endswith(wanted.removeprefix("FILE"))
        if server or file or target == wanted == "":
            return EngineAddress(kind, target)
    forms = [form for each in FORMS.values() for form in each]
    raise ValueError(f"found {text}, wanted {', '.join(forms[:-1])} or {forms[-1]}")
