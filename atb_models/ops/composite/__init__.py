"""Operations made of many others."""
