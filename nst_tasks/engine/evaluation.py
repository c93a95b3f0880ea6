"""Quality metrics of a finished pair, measured on what the network was shown."""

from __future__ import annotations

import numpy as np

from nst_tasks.core import metrics, vgg
from nst_tasks.core.metrics import Quality
from nst_tasks.engine.devices import Device
from nst_tasks.engine.preprocessing import LoadedJob, prepare_content
from nst_tasks.engine.targets import make_color_match_key, make_content_key
from nst_tasks.images.picture import Picture, flatten_on_white
from nst_tasks.images.resize import fit_size, resize, resize_mask
from nst_tasks.outputs.loss_history import LevelHistory


def measure_quality(
    loaded: LoadedJob, image: np.ndarray, histories: list[LevelHistory], backbone: vgg.Backbone, device: Device
) -> Quality:
    """Measure the quality of a pair's result, at the size at which `core.metrics` compares images.

    Args:
        image: The network's image (H, W, 3), before original colors and masked-out content are restored.
        histories: The pair's loss history, one for each level.
    """
    job = loaded.job
    height, width = fit_size(job.height, job.width, metrics.COMPARISON_SIDE_PIXELS, upscale=False)
    layers = tuple(layer for layer, _ in job.recipe.method.style.layers)

    def measure_content() -> metrics.ContentMoments:
        mask = None if loaded.mask is None else resize_mask(loaded.mask, height, width)
        return metrics.content_moments(backbone, prepare_content(loaded, height, width), layers, mask)

    style_moments = []
    for source, picture in zip(job.styles, loaded.styles, strict=True):

        def measure(picture: Picture = picture) -> metrics.StyleMoments:
            sized = resize(
                picture, *fit_size(picture.rgb.shape[0], picture.rgb.shape[1], metrics.COMPARISON_SIDE_PIXELS, upscale=False)
            )
            return metrics.style_moments(backbone, flatten_on_white(sized.rgb, sized.alpha), layers)

        key = ("quality", source.sha256, layers, job.weights_sha256, make_color_match_key(loaded))
        style_moments.append(device.style_cache.get_or_compute(key, measure))
    return metrics.measure(
        backbone,
        layers,
        resize(Picture(image, None), height, width).rgb,
        device.content_cache.get_or_compute(
            (*make_content_key(loaded), job.mask and job.mask.sha256, layers, job.weights_sha256), measure_content
        ),
        style_moments,
        job.pair.style_weights,
        [level.terms.sum(axis=1) for level in histories],
    )
