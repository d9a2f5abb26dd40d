"""AWQ, as AutoAWQ writes it in its version gemm."""
