"""A ResNet-8 whose training as a Slurm job takes minutes on any machine, to have time for faults."""

import os
import time

import ztw

SECONDS = 0.1 if "SLURM_JOB_ID" in os.environ else 0.0  # wait in every training step


def wait(module, inputs):
    if module.training:
        time.sleep(SECONDS)


@ztw.register("backbone", "unhurried", blocks=3, smallest_image=8)
def unhurried(name, num_classes, channels, size, options):
    backbone = ztw.build_backbone("resnet8", num_classes=num_classes, channels=channels, size=size)
    backbone.arch = name
    backbone.stages[0].register_forward_pre_hook(wait)
    return backbone
