"""Operations of the CPU in a library of our own: C++ in csrc/, one shared object per instruction set, called by ctypes.

`build` compiles it (at installation), `library` chooses and loads a level; the other modules are the operations. They
take tensors, check what the C side relies on, and pass addresses. Sums are float32.

Same request, same bits: on one level each output has the same terms, added in the same order by the same kind of
instruction, for one row and for a thousand, for any cut into chunks, any number of threads and any neighbours.
"""
