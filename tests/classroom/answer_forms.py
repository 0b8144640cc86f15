"""Forms in which a right answer may come: as it is, float32, tensors, lists; parts of a tuple each."""

import numpy as np
import torch


def same(x):
    return x


def single(x):
    return tuple(map(single, x)) if isinstance(x, tuple) else np.asarray(x, dtype=np.float32)


def tensors(x):
    return tuple(map(tensors, x)) if isinstance(x, tuple) else torch.as_tensor(np.asarray(x))


def lists(x):
    return tuple(map(lists, x)) if isinstance(x, tuple) else np.asarray(x).tolist()


FORMS = [same, single, tensors, lists]
