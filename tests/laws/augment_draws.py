"""What BYOL's set and byol-pytorch's draw from a view's key, number by number, without an image.

A second account of where each random number comes from. With it `test_augment_paper` builds the same views by other
means, and a change in the order of draws, which would give every seed other views, can't go unnoticed.
"""

import itertools

import jax
import jax.numpy as jnp


def uniform(key, low=0.0, high=1.0):
    return jax.random.uniform(key, (), jnp.float32, low, high)


def operation_keys(key, count):
    """The key of each operation of a set."""
    return [jax.random.fold_in(key, position) for position in range(count)]


def order_of_four(key):
    """The order of brightness 0, contrast 1, saturation 2 and hue 3, [4]: one of six for three, and hue's place."""
    key_order, key_place = jax.random.split(key)
    orders = jnp.asarray(list(itertools.permutations(range(3))), jnp.int32)
    three = orders[jax.random.randint(key_order, (), 0, 6, jnp.int32)]
    place = jax.random.randint(key_place, (), 0, 4, jnp.int32)
    at = jnp.arange(4)
    return jnp.where(at == place, 3, three[jnp.where(at > place, at - 1, jnp.minimum(at, 2))])


def byol_draws(key):
    """{what: number} for one view of the paper's set; chances are uniform in [0, 1), to be compared with p."""
    crop, flip, colour, grey, blur, solarize = operation_keys(key, 6)
    chance_colour, colour = jax.random.split(colour)
    order, brightness, contrast, saturation, hue = jax.random.split(colour, 5)
    chance_blur, sigma = jax.random.split(blur)
    return {
        "crop": jax.random.uniform(crop, (4,), jnp.float32),  # area, ratio, top, left
        "flip": uniform(flip),
        "colour": uniform(chance_colour),
        "order": order_of_four(order),
        "brightness": uniform(brightness, -0.4, 0.4),
        "contrast": uniform(contrast, 0.6, 1.4),
        "saturation": uniform(saturation, 0.8, 1.2),
        "hue": uniform(hue, -0.1, 0.1),
        "grey": uniform(grey),
        "blur": uniform(chance_blur),
        "sigma": uniform(sigma, 0.1, 2.0),
        "solarize": uniform(solarize),
    }


def simclr_draws(key):
    """The same for byol-pytorch's default set. The crop's box is torchvision's own draw, by `geometry.random_box`."""
    colour, grey, flip, blur, crop = operation_keys(key, 5)
    chance_colour, colour = jax.random.split(colour)
    order, hue, brightness, contrast, saturation = jax.random.split(colour, 5)
    chance_blur, sigma = jax.random.split(blur)
    return {
        "colour": uniform(chance_colour),
        "order": order_of_four(order),
        "brightness": uniform(brightness, 0.2, 1.8),
        "contrast": uniform(contrast, 0.2, 1.8),
        "saturation": uniform(saturation, 0.2, 1.8),
        "hue": uniform(hue, -0.2, 0.2),
        "grey": uniform(grey),
        "flip": uniform(flip),
        "blur": uniform(chance_blur),
        "sigma": uniform(sigma, 1.0, 2.0),
        "box key": jax.random.split(crop)[0],
    }
