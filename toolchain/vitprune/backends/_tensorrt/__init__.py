"""Parts of the TensorRT backend, one concept a file. None of them needs torch, timm or pydantic: they run on the device."""
