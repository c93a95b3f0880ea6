"""All convolutions of VGG16 as a Keras model, as `keras.applications` builds it without its classifier."""

from __future__ import annotations

import itertools

import keras

from nst_tasks.inputs.weights import Weights


def build_network(weights: Weights) -> keras.Model:
    """Build five blocks, each followed by pooling, for images of any size, BGR 0-255 minus the mean colour."""
    input_tensor = keras.Input((None, None, 3))
    x = input_tensor
    for block, layers in itertools.groupby(weights, key=lambda layer: layer.partition("_")[0]):
        for layer in layers:
            filters = weights[layer][0].shape[-1]
            x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", name=layer)(x)
        x = keras.layers.MaxPooling2D(2, 2, name=f"{block}_pool")(x)
    model = keras.Model(input_tensor, x)
    for layer, arrays in weights.items():
        model.get_layer(layer).set_weights(arrays)
    model.trainable = False
    return model
