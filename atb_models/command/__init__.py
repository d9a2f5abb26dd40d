"""What all command lines share: the parser and its value types, the flags of a model, exit status, interrupts."""
