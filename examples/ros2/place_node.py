"""A node of ROS 2 that says where its camera is, by a server of this project.

    python main.py serve --resume=runs/RUN --root=map/ --split=val          # on the robot or near it
    VPR_SERVER=http://127.0.0.1:8000 python examples/ros2/place_node.py --ros-args -r image:=/camera/image/compressed

It subscribes to `image` (sensor_msgs/CompressedImage: JPEG or PNG) and publishes the place of the best match, unless
the server is not sure: as `fix` (sensor_msgs/NavSatFix) and as `pose` (geometry_msgs/PoseWithCovarianceStamped,
easting and northing in the frame `utm`). Both have the covariance that the server tells, or METRES squared where it
knows none. Frames that come while one is being located are skipped. Only vpr/client.py and rclpy are needed.
"""

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "vpr"))

from client import Client, ServerError

METRES = 25.0  # standard deviation where the server knows none: so far off a match still counts as right
UNKNOWN = 1e6  # variance of height and angles, of which a place says nothing
SURE = 0.5  # probability from which a place is published, where the server's answers have one


def place_in(answer: dict[str, Any]) -> dict[str, Any] | None:
    """The place of an answer of /v1/locate: latitude, longitude in degrees, easting, northing in metres, and the
    covariance of the latter, ee, en, ne, nn; None where the server is not sure, or the map's places are unknown."""
    best = next(iter(answer["matches"]), None)
    is_probability = answer["confidence_kind"].startswith("probability")
    unsure = is_probability and answer["confidence"] is not None and answer["confidence"] < SURE
    if answer["refused"] or unsure or best is None or best["latitude"] is None:
        return None
    known = answer["uncertainty"]
    rows = known["covariance"] if known else [[METRES**2, 0.0], [0.0, METRES**2]]
    place = {name: best[name] for name in ("latitude", "longitude", "easting", "northing")}
    return {**place, "covariance": [*rows[0], *rows[1]]}


def pose_covariance(plane: list[float]) -> list[float]:
    """That of x, y, z and the three angles, 6 x 6 by rows, of a place of which ee, en, ne, nn are known."""
    rows = [[UNKNOWN if i == j else 0.0 for j in range(6)] for i in range(6)]
    rows[0][:2], rows[1][:2] = plane[:2], plane[2:]
    return [value for row in rows for value in row]


def main() -> None:
    import rclpy
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from rclpy.node import Node
    from sensor_msgs.msg import CompressedImage, NavSatFix, NavSatStatus

    class PlaceNode(Node):
        """Locates the newest frame, one at a time."""

        def __init__(self) -> None:
            super().__init__("place")
            server = os.environ.get("VPR_SERVER", "http://127.0.0.1:8000")
            self.client, self.busy = Client(server), threading.Lock()
            self.fixes = self.create_publisher(NavSatFix, "fix", 1)
            self.poses = self.create_publisher(PoseWithCovarianceStamped, "pose", 1)
            self.create_subscription(CompressedImage, "image", self.came, 1)
            self.get_logger().info(f"asking {server}")

        def came(self, frame: Any) -> None:
            if self.busy.acquire(blocking=False):  # else the frame is skipped
                threading.Thread(target=self.locate, args=(frame,), daemon=True).start()

        def locate(self, frame: Any) -> None:
            try:
                place = place_in(self.client.locate(bytes(frame.data), top=1))
                if place is not None:
                    self.fixes.publish(self.fix_of(frame, place))
                    self.poses.publish(self.pose_of(frame, place))
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
            fix.position_covariance = [ee, en, 0.0, ne, nn, 0.0, 0.0, 0.0, UNKNOWN]
            fix.position_covariance_type = NavSatFix.COVARIANCE_TYPE_APPROXIMATED
            return fix

        @staticmethod
        def pose_of(frame: Any, place: dict[str, Any]) -> Any:
            pose = PoseWithCovarianceStamped()
            pose.header.stamp, pose.header.frame_id = frame.header.stamp, "utm"
            pose.pose.pose.position.x, pose.pose.pose.position.y = place["easting"], place["northing"]
            pose.pose.pose.orientation.w = 1.0
            pose.pose.covariance = pose_covariance(place["covariance"])
            return pose

    rclpy.init()
    try:
        rclpy.spin(PlaceNode())
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
