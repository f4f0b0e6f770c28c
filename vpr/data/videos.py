"""A video file -> image files of its frames, by OpenCV, which is not needed for anything else here."""

from pathlib import Path

from vpr.common.errors import UserError
from vpr.common.progress import say

ENDINGS = frozenset((".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".3gp"))
QUALITY = 95  # of the JPEGs


def is_video(file: Path) -> bool:
    """Whether a file is one, by its ending."""
    return file.suffix.lower() in ENDINGS


def frames_of(video: Path, folder: Path, step: float) -> list[Path]:
    """Write a frame of every `step` seconds below a folder, upright, and give the files in the order of time.

    They are named by the video and the second, `walk.mp4/00012.50.jpg`, which makes them one sequence.
    Raises a UserError: OpenCV is not installed, or it can decode no frame.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            f"{video} is a video, which OpenCV decodes: python -m pip install opencv-python-headless, or give images"
        ) from error
    files, due, capture = [], 0.0, cv2.VideoCapture(str(video))
    (folder / video.name).mkdir(parents=True)
    while capture.grab():
        second = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if second < due:
            continue
        decoded, frame = capture.retrieve()
        if not decoded:
            break
        file, due = folder / video.name / f"{second:08.2f}.jpg", second + step - 1e-3  # times are whole milliseconds
        cv2.imwrite(str(file), frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        files.append(file)
    capture.release()
    if not files:
        raise UserError(f"{video} has no frame that can be decoded: give another file, or images")
    say(f"{video}: {len(files)} frames, one every {step:g} s")
    return files
