"""What the server counts, in Prometheus's text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Of one server.

    Attributes:
        requests: by route and status.
        seconds: from a request's first byte to the answer's last, by route.
        batches: images of each pass of the model.
        refused: images that were located with too little confidence.
        decoded: images that were handed to decoders.
    """

    def __init__(self, underway: Callable[[], int], images: Callable[[], int]) -> None:
        """Functions that count: images underway, images of the index."""
        self._registry = CollectorRegistry()  # its own: several servers may live in a process
        self.requests = Counter("vpr_requests", "Requests.", ("route", "status"), registry=self._registry)
        self.seconds = Histogram(
            "vpr_request_seconds", "Time of a request.", ("route",), registry=self._registry, buckets=SECONDS
        )
        self.batches = Histogram(
            "vpr_batch_images", "Images described at once.", registry=self._registry, buckets=IMAGES
        )
        self.refused = Counter("vpr_refused", "Images whose place was not sure enough.", registry=self._registry)
        self.decoded = Counter("vpr_decoded_images", "Images handed to decoders.", registry=self._registry)
        for name, text, count in (
            ("vpr_queue_images", "Images underway.", underway),
            ("vpr_index_images", "Images in the index.", images),
        ):
            Gauge(name, text, registry=self._registry).set_function(count)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
