"""Which prompts an update trains on: a pure function, so that a resumed run needs no iterator's state.

Grain's index shuffle gives position i of the endless sequence of epochs without the positions before it, the same in
every process. Its import adds 0.2 s to a process that has jax already.
"""

import numpy as np


def prompt_indices(num_prompts: int, seed: int, update: int, batch_size: int) -> np.ndarray:
    """Indices into the training prompts, [batch_size] int64.

    Epochs follow each other without a gap, each a new permutation of all prompts; a batch may begin in one and end in
    the next. With another batch size the sequence is the same, cut elsewhere.

    Args:
        seed: 0 to 2**32 - 1.
        update: counted from 0.
    """
    if num_prompts < 1 or batch_size < 1 or update < 0:
        raise ValueError(
            f"num_prompts {num_prompts} and batch_size {batch_size} must be positive, update {update} not < 0"
        )
    import grain

    epochs = grain.MapDataset.range(num_prompts).seed(seed).shuffle().repeat()
    start = update * batch_size
    return np.array([epochs[i] for i in range(start, start + batch_size)], np.int64)
