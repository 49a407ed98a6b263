"""A small random CvT whose BatchNorm statistics and biases are not trivial, and its export."""

import warnings

import torch


def small_cvt(kernel=3, stride_kv=2, **changes):
    from transformers import CvtConfig, CvtForImageClassification

    torch.manual_seed(5)
    settings = dict(
        embed_dim=[16, 32, 32], num_heads=[1, 2, 2], depth=[1, 2, 4], num_labels=10, drop_rate=[0.0] * 3, drop_path_rate=[0.0] * 3,
        kernel_qkv=[3, 3, kernel], padding_q=[1, 1, kernel // 2], padding_kv=[1, 1, kernel // 2], stride_kv=[2, 2, stride_kv],
    )  # fmt: skip
    model = CvtForImageClassification(CvtConfig(**{**settings, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "normalization" in name or "layernorm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.2)
            elif "projection_query" in name or "projection_key" in name:
                parameter.normal_(0, 0.5)
            elif "convolution.weight" in name:
                parameter.normal_(0, 0.4)
            else:
                parameter.normal_(0, 0.15)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image).logits


def export_cvt(model, side):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Logits(model),
            (torch.zeros(2, 3, side, side),),
            dynamo=True,
            opset_version=18,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            verbose=False,
        )
    return program.model_proto
