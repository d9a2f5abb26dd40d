"""Operations on int8 activations, and 4-bit integers in memory."""
