"""Measures the face detector: how often it finds the main face in footage, what a frame costs, and where the pictures
that train the face encoder lie around the face (the defaults of `face_margin` and `face_vertical_offset`).

    python tests/benchmarks/bench_faces.py talk.mp4 interview.webm
    python tests/benchmarks/bench_faces.py --frame-height 720 --frames 32 --detect-every 2 talk.mp4
    python tests/benchmarks/bench_faces.py --calibrate
"""

import argparse
import io
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from triemo.processing.faces_triemo import FaceDetector, locate_main_face, resolve_face_detector
from triemo.processing.media_triemo import load_frames
from triemo.processing.mtcnn_triemo import load_mtcnn_weights

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "checkpoints" / "triemo-small" / "face_detector.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", help="files of one speaker each")
    parser.add_argument("--detector", default="mtcnn", help="mtcnn, haar, or a YuNet .onnx file")
    parser.add_argument("--weights", default=WEIGHTS, help="MTCNN's safetensors")
    parser.add_argument("--detection-size", type=int, default=480, help="longer side of the shrunk frame, pixels")
    parser.add_argument("--min-face-size", type=int, default=24, help="pixels of the shrunk frame")
    parser.add_argument("--frames", type=int, default=64, help="frames sampled evenly from each file")
    parser.add_argument("--detect-every", type=int, default=1)
    parser.add_argument("--frame-height", type=int, help="enlarge or shrink the frames first, to time another format")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", action="store_true", help="measure FER2013 pictures against their face boxes")
    parser.add_argument("--pictures", type=int, default=400, help="for --calibrate")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    weights = load_mtcnn_weights(arguments.weights) if arguments.detector == "mtcnn" else None
    detector = resolve_face_detector(arguments.detector, weights, arguments.detection_size, arguments.min_face_size)
    if detector is None:
        parser.error("--detector must name one")
    for path in arguments.videos:
        print(json.dumps(measure_video(detector, path, arguments)))
    if arguments.calibrate:
        print(json.dumps(calibrate(detector, arguments.pictures)))


def measure_video(detector: FaceDetector, path: str, arguments: argparse.Namespace) -> dict:
    """Share of sampled frames in which a face is detected at all and in which the main face is known after tracking;
    milliseconds of wall clock and of processor time a frame."""
    frames, _ = load_frames(path, num_frames=arguments.frames)
    if arguments.frame_height:
        frames = [resized(frame, arguments.frame_height) for frame in frames]
    detector(frames[:2])
    wall, work = time.perf_counter(), processor_seconds()
    boxes = locate_main_face(detector, frames, arguments.detect_every)
    wall, work = time.perf_counter() - wall, processor_seconds() - work
    return {
        "video": os.path.basename(path),
        "frames": len(frames),
        "height": frames[0].shape[0],
        "width": frames[0].shape[1],
        "detected": round(float(np.mean([len(faces) > 0 for faces in detector(frames)])), 4),
        "main_face": round(float(1 - np.isnan(boxes).any(axis=1).mean()), 4),
        "wall_ms_per_frame": round(1000 * wall / len(frames), 2),
        "work_ms_per_frame": round(1000 * work / len(frames), 2),
    }


def calibrate(detector: FaceDetector, count: int) -> dict:
    """Where FER2013 training pictures lie around the detected face. The pictures are cropped too tightly to be
    searched as they are, so each is enlarged four times and gets a border of half its side that repeats its edge."""
    import pyarrow.parquet as parquet

    data = Path(os.environ.get("TRIEMO_DATA", ROOT.parent / "shared" / "data")) / "fer2013" / "train.parquet"
    column = parquet.read_table(data, columns=["image"])["image"]
    side, border = 192, 96
    sides, rights, downs = [], [], []
    for index in np.random.default_rng(0).choice(len(column), count, replace=False):
        picture = Image.open(io.BytesIO(column[int(index)].as_py()["bytes"])).convert("L")
        grey = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
        frame = np.repeat(np.pad(grey, border, mode="edge")[..., None], 3, axis=2)
        faces = detector([frame])[0]
        if len(faces) == 0:
            continue
        x0, y0, x1, y1 = faces[np.argmax((faces[:, 2] - faces[:, 0]) * faces[:, 4])][:4]
        sides.append(side / np.sqrt((x1 - x0) * (y1 - y0)))
        centre = border + side / 2
        rights.append((centre - (x0 + x1) / 2) / (x1 - x0))
        downs.append((centre - (y0 + y1) / 2) / (y1 - y0))
    quartiles = {
        name: [round(float(q), 3) for q in np.quantile(values, [0.25, 0.5, 0.75])]
        for name, values in (("face_margin", np.array(sides) - 1), ("right", rights), ("face_vertical_offset", downs))
    }
    return {"pictures": count, "found": round(len(sides) / count, 4), "quartiles": quartiles}


def resized(frame: np.ndarray, height: int) -> np.ndarray:
    width = round(frame.shape[1] * height / frame.shape[0])
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
