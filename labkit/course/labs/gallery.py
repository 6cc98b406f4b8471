"""The gallery: every view of routing on a model of ours and on a traced one. It is no lab: nothing is asked."""

from __future__ import annotations

from labkit.course.labs import Lab

LAB = Lab(
    number="gallery",
    name="",
    title="Gallery: routing that can be seen and touched",
    minutes=30,
    hardware="any CPU; a GPU trains the small model longer",
    claims=(),
    exercises=(),
    questions=(),
)
