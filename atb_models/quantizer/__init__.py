"""`atb-models quantize`: a checkpoint written again with the weights of its linear maps in fewer bits."""
