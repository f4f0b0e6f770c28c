"""A node of ROS 2 that says where its camera is, by a server of this project.

    python main.py serve --resume=runs/RUN --root=map/ --split=val          # on the robot or near it
    VPR_SERVER=http://127.0.0.1:8000 python examples/ros2/place_node.py --ros-args -r image:=/camera/image/compressed

It subscribes to `image` (sensor_msgs/CompressedImage: JPEG or PNG) and publishes `fix` (sensor_msgs/NavSatFix), the
place of the best match, unless the server is not sure. Frames that come while one is being located are skipped. The
covariance is that of the places of the first matches, at least METRES. Only vpr/client.py and rclpy are needed.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "vpr"))

from client import Client, ServerError

MATCHES = 5
METRES = 5.0  # standard deviation at least: how far apart a map's images usually are
SURE = 0.5  # probability from which a place is published, where the server's answers have one


def place_in(answer: dict[str, Any]) -> dict[str, Any] | None:
    """The place of an answer of /v1/locate: latitude and longitude in degrees, and the covariance of east and north, 4
    numbers in square metres; None where the server is not sure, or the map's places are unknown."""
    matches = [match for match in answer["matches"] if match["latitude"] is not None]
    is_probability = answer["confidence_kind"].startswith("probability")
    unsure = is_probability and answer["confidence"] is not None and answer["confidence"] < SURE
    if answer["refused"] or unsure or not matches or matches[0] is not answer["matches"][0]:
        return None
    return {
        "latitude": matches[0]["latitude"], "longitude": matches[0]["longitude"], "covariance": covariance_of(matches),
    }  # fmt: skip


def covariance_of(matches: list[dict[str, Any]]) -> list[float]:
    """Mean products of how far east and north, in metres, matches lie from the first one, plus METRES squared on the
    diagonal: ee, en, ne, nn."""
    first = matches[0]
    away = [(each["easting"] - first["easting"], each["northing"] - first["northing"]) for each in matches]
    products = [[sum(one[i] * one[j] for one in away) / len(away) for j in (0, 1)] for i in (0, 1)]
    return [products[i][j] + (METRES**2 if i == j else 0.0) for i in (0, 1) for j in (0, 1)]


def main() -> None:
    import rclpy
    from rclpy.node import Node
    from sensor_msgs.msg import CompressedImage, NavSatFix, NavSatStatus

    class PlaceNode(Node):
        """Locates the newest frame, one at a time."""

        def __init__(self) -> None:
            super().__init__("place")
            server = os.environ.get("VPR_SERVER", "http://127.0.0.1:8000")
            self.client, self.busy = Client(server), threading.Lock()
            self.fixes = self.create_publisher(NavSatFix, "fix", 1)
            self.create_subscription(CompressedImage, "image", self.came, 1)
            self.get_logger().info(f"asking {server}")

        def came(self, frame: Any) -> None:
            if self.busy.acquire(blocking=False):  # else the frame is skipped
                threading.Thread(target=self.locate, args=(frame,), daemon=True).start()

        def locate(self, frame: Any) -> None:
            try:
                place = place_in(self.client.locate(bytes(frame.data), top=MATCHES))
                if place is not None:
                    self.fixes.publish(self.fix_of(frame, place))
            except (OSError, ServerError) as error:
                self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            finally:
                self.busy.release()

        @staticmethod
        def fix_of(frame: Any, place: dict[str, Any]) -> Any:
            fix = NavSatFix(header=frame.header, latitude=place["latitude"], longitude=place["longitude"])
            fix.altitude = float("nan")
            fix.status.status, fix.status.service = NavSatStatus.STATUS_FIX, 0
            ee, en, ne, nn = place["covariance"]
            fix.position_covariance = [ee, en, 0.0, ne, nn, 0.0, 0.0, 0.0, 1e6]
            fix.position_covariance_type = NavSatFix.COVARIANCE_TYPE_APPROXIMATED
            return fix

    rclpy.init()
    try:
        rclpy.spin(PlaceNode())
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
