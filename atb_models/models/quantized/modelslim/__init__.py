"""ModelSlim's weights, in the forms of its older and its newer saver, as MindIE and vllm-ascend read them."""
