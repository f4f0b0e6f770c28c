"""Which engine is meant; without torch, for the command line."""

from dataclasses import dataclass

FAISS, MILVUS = "faiss", "milvus"


@dataclass(frozen=True)
class EngineAddress:
    """Which engine: FAISS beside the model, or a Milvus file or server.

    Attributes:
        target: of Milvus, a file of Milvus Lite, or the address of a server; empty for FAISS.
    """

    kind: str = FAISS
    target: str = ""

    @property
    def is_server(self) -> bool:
        """Whether it is reached over the network."""
        return "://" in self.target


def engine_address(text: str) -> EngineAddress:
    """Reads faiss, milvus:FILE.db or milvus:http://HOST:PORT.

    Raises:
        ValueError: it is none of these.
    """
    kind, _, target = text.partition(":")
    server = target.startswith(("http://", "https://"))
    if (kind == FAISS and not target) or (kind == MILVUS and (server or target.endswith(".db"))):
        return EngineAddress(kind, target)
    raise ValueError(f"found {text}, wanted faiss, milvus:FILE.db or milvus:http://HOST:19530")
