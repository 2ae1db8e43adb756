"""The drawing of skeletons written as plainly as its definition reads: whole canvas, every step, OpenCV's resize.

``draw_normalised`` must give the same pixels for any pose; this is what it is held against.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from stableanimator_cli.motion import keypoints as kp
from stableanimator_cli.motion.skeleton import BODY_COLOURS


def draw(people: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """People float64[p,134,3] (shares of the frame) as uint8[h,w,3]."""
    scale = 2160 / min(size)
    width, height = int(size[0] * scale), int(size[1] * scale)
    canvas = np.zeros((height, width, 3), np.uint8)
    for (a, b), colour in zip(kp.BODY_LIMBS, BODY_COLOURS, strict=False):
        for person in people:
            if person[a, 2] < 0.3 or person[b, 2] < 0.3:
                continue
            x, y = person[[a, b], 0] * width, person[[a, b], 1] * height
            length = ((y[0] - y[1]) ** 2 + (x[0] - x[1]) ** 2) ** 0.5
            angle = math.degrees(math.atan2(y[0] - y[1], x[0] - x[1]))
            centre = (int(np.mean(x)), int(np.mean(y)))
            polygon = cv2.ellipse2Poly(centre, (int(length / 2), 4), int(angle), 0, 360, 1)
            cv2.fillConvexPoly(canvas, polygon, [int(c * (person[a, 2] * person[b, 2])) for c in colour])
    canvas = (canvas * 0.6).astype(np.uint8)
    for joint, colour in enumerate(BODY_COLOURS):
        for person in people:
            x, y, score = person[joint]
            if score > 0.3:
                cv2.circle(canvas, (int(x * width), int(y * height)), 4, [int(c * score) for c in colour], -1)
    for hand in [person[part] for part in (kp.LEFT_HAND, kp.RIGHT_HAND) for person in people]:
        spots = [(int(x * width), int(y * height)) for x, y, _ in hand]
        for bone, (a, b) in enumerate(kp.HAND_LIMBS):
            if min(*spots[a], *spots[b]) > 0.01:
                strength = int(hand[a, 2] * hand[b, 2] * 255)
                colour = [c * strength for c in colorsys.hsv_to_rgb(bone / 20, 1.0, 1.0)]
                cv2.line(canvas, spots[a], spots[b], colour, thickness=2)
        for spot, score in zip(spots, hand[:, 2], strict=True):
            if min(spot) > 0.01:
                cv2.circle(canvas, spot, 4, (0, 0, int(score * 255)), -1)
    for person in people:
        for x, y, score in person[kp.FACE]:
            spot = (int(x * width), int(y * height))
            if min(spot) > 0.01:
                cv2.circle(canvas, spot, 3, (int(score * 255),) * 3, -1)
    return cv2.resize(canvas, size)
