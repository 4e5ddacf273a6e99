"""Confusion counts: how often each pair of labels shares a pixel.

Labels are coherent, so 32 pixels of one pair are one addition, else 8, else each pixel is counted. A loop over pixels
alone is slow for the same reason: each increment waits for the last one of the same cell. Hence several tables, too,
which neighbours use in turn.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Int64, UInt8, UInt64

from segbench.metrics.kernels.compiling import compiled

ZERO, FOUR, EIGHT, BYTE = np.uint64(0), np.uint64(4), np.uint64(8), np.uint64(255)
HIGH_NIBBLES = np.uint64(0xF0F0F0F0F0F0F0F0)


@compiled
@no_type_check
def count_nibbles(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> tuple[Int64[np.ndarray, "k1 k1"], int]:
    """Confusion counts of up to 14 classes, and the number of truths above void, which are not among them.

    Eight truths in a word, shifted by four bits, and eight predictions make one word of eight pairs.
    """
    truths, truth_words = bytes_and_words(truth)
    predictions, prediction_words = bytes_and_words(prediction)
    tables = np.zeros((4, 256), np.int64)
    n = truth_words.size // 4 * 4
    for i in range(0, n, 4):
        a, b = (truth_words[i] << FOUR) | prediction_words[i], (truth_words[i + 1] << FOUR) | prediction_words[i + 1]
        c, d = truth_words[i + 2], truth_words[i + 3]
        high = truth_words[i] | truth_words[i + 1] | c | d
        c, d = (c << FOUR) | prediction_words[i + 2], (d << FOUR) | prediction_words[i + 3]
        high |= prediction_words[i] | prediction_words[i + 1] | prediction_words[i + 2] | prediction_words[i + 3]
        if high & HIGH_NIBBLES != ZERO:
            count_pixels(truths, predictions, 8 * i, 8 * i + 32, tables[0])
        elif (a ^ b) | (a ^ c) | (a ^ d) | (a ^ ((a >> EIGHT) | (a << np.uint64(56)))) == ZERO:
            tables[0, a & BYTE] += 32
        else:
            for pairs in (a, b, c, d):
                count_eight(pairs, tables)
    count_pixels(truths, predictions, 8 * n, truths.size, tables[0])
    table = tables.sum(axis=0).reshape(16, 16)
    counts = table[:, : num_classes + 1].copy()
    counts[:, num_classes] = table[:, num_classes:].sum(axis=1)
    return counts[: num_classes + 1].copy(), counts[num_classes + 1 :].sum()


@compiled
@no_type_check
def bytes_and_words(labels: UInt8[np.ndarray, "h w"]) -> tuple[UInt8[np.ndarray, " n"], UInt64[np.ndarray, " n//8"]]:
    """The map as bytes and, for its first n // 8 * 8 bytes, as 64-bit words, which lie at multiples of 8."""
    flat = labels.ravel()
    if flat.ctypes.data % 8 != 0:
        flat = flat.copy()
    return flat, flat[: flat.size // 8 * 8].view(np.uint64)


@compiled
@no_type_check
def count_eight(pairs: int, tables: Int64[np.ndarray, "4 256"]) -> None:
    if repeats_a_byte(pairs):
        tables[1, pairs & BYTE] += 8
        return
    for _ in range(2):
        for table in range(4):
            tables[table, pairs & BYTE] += 1
            pairs >>= EIGHT


@compiled
@no_type_check
def count_pixels(
    truth: UInt8[np.ndarray, " n"], prediction: UInt8[np.ndarray, " n"], start: int, end: int, table: np.ndarray
) -> None:
    for i in range(start, end):
        table[min(truth[i], 15) * 16 + min(prediction[i], 15)] += 1


@compiled
@no_type_check
def count_bytes(
    truth: UInt8[np.ndarray, "h w"], prediction: UInt8[np.ndarray, "h w"], num_classes: int
) -> Int64[np.ndarray, "k1 k1"]:
    """Confusion counts of truths up to num_classes, which is void, and of any predictions."""
    truths, truth_words = bytes_and_words(truth)
    predictions, prediction_words = bytes_and_words(prediction)
    table, other = np.zeros((num_classes + 1, 256), np.int64), np.zeros((num_classes + 1, 256), np.int64)
    n = truth_words.size
    for start in range(0, n - 3, 4):
        t, p = truth_words[start], prediction_words[start]
        differ = ZERO
        for i in range(start + 1, start + 4):
            differ |= (truth_words[i] ^ t) | (prediction_words[i] ^ p)
        if differ == ZERO and repeats_a_byte(t) and repeats_a_byte(p):
            table[t & BYTE, p & BYTE] += 32
        else:
            for i in range(start, start + 4):
                count_word(truth_words[i], prediction_words[i], table, other)
    for i in range(n // 4 * 32, truths.size):
        table[truths[i], predictions[i]] += 1
    table += other
    counts = table[:, : num_classes + 1].copy()
    for t in range(num_classes + 1):
        counts[t, num_classes] = table[t, num_classes:].sum()
    return counts


@compiled
@no_type_check
def count_word(t: int, p: int, table: Int64[np.ndarray, "k1 256"], other: Int64[np.ndarray, "k1 256"]) -> None:
    if repeats_a_byte(t) and repeats_a_byte(p):
        other[t & BYTE, p & BYTE] += 8
        return
    for _ in range(4):
        table[t & BYTE, p & BYTE] += 1
        other[(t >> EIGHT) & BYTE, (p >> EIGHT) & BYTE] += 1
        t >>= np.uint64(16)
        p >>= np.uint64(16)


@compiled
@no_type_check
def repeats_a_byte(word: int) -> bool:
    return word == ((word >> EIGHT) | (word << np.uint64(56)))
