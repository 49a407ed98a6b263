"""Models, exports and runtimes for the A-ViT tests."""

import warnings

import numpy as np
import onnxruntime
import timm
import torch

GATE = {"gate_scale": 4.0, "gate_center": 11.0}


def recipe(graph=None, **keys):
    from vitprune.recipe import Recipe

    return Recipe.load({"prune": {"method": "avit", **GATE, **keys}, "graph": graph or {}})


def golden_model(golden):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=64, depth=12, num_heads=4, num_classes=10
    )
    model.load_state_dict({key[2:]: torch.tensor(golden[key]) for key in golden.files if key.startswith("w/")})
    return model.eval()


def unusual_model():
    """LayerScale, a register behind CLS and q/k norm; depth 4, 16 patches; channel 0 made lively so that tokens halt apart."""
    torch.manual_seed(3)
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5, init_values=0.3, reg_tokens=1, qk_norm=True
    )
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.weight[0] *= 20
            block.ls1.gamma.uniform_(0.5, 1.5)
            block.ls2.gamma.uniform_(0.5, 1.5)
    return model.eval()


def export(model, image, batch=2):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.zeros(batch, *image),),
            dynamo=True,
            opset_version=18,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            verbose=False,
        )
    return program.model_proto


def run_graph(dense, chosen, x):
    """Logits and kept lists of the rewritten graph on ONNX Runtime."""
    return session(dense, chosen).run(None, {"image": np.asarray(x)})


def session(dense, chosen):
    from vitprune.graph.surgery import rewrite

    model = rewrite(dense, chosen)[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_reference(model, chosen, x):
    """The reference module after a forward, and its logits."""
    from vitprune.pipelines import reference

    module = reference(model, chosen)
    with torch.no_grad():
        logits = module(torch.as_tensor(x)).numpy()
    return module, logits


def sets(kept):
    """Kept lists [B,K] as a list of tuples without padding."""
    return [tuple(int(p) for p in row if p >= 0) for row in np.asarray(kept)]


def builds_on_rtx(model, image):
    """Whether TensorRT-RTX parses and builds the graph (on the CPU); the parser's complaint otherwise."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("image", (1, *image), (2, *image), (4, *image))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None
