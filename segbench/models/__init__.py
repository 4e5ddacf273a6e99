"""The one table of models: names to strings, so that listing them imports neither torch nor a model.

`smp:NAME` and `torchvision:NAME` are families: the part behind the colon is the other library's own name.
"""

from segbench.registry import Entry, Registry

MODELS = Registry(
    "model",
    [
        (
            "segnet",
            Entry(
                "segbench.models.segnet:SegNet",
                "SegNet",
                "Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3",
            ),
        ),
        (
            "segnet-basic",
            Entry(
                "segbench.models.segnet_basic:SegNetBasic",
                "SegNet-Basic",
                "Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1",
            ),
        ),
        (
            "fcn-basic",
            Entry(
                "segbench.models.fcn_basic:FCNBasic",
                "FCN-Basic",
                "Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561, section 3.1",
            ),
        ),
        (
            "fcn8s",
            Entry(
                "segbench.models.fcn:FCN8s",
                "FCN-8s",
                "Long, Shelhamer & Darrell, CVPR 2015, arXiv:1411.4038",
            ),
        ),
        (
            "deeplab-largefov",
            Entry(
                "segbench.models.deeplab_largefov:DeepLabLargeFOV",
                "DeepLab-LargeFOV",
                "Chen, Papandreou, Kokkinos, Murphy & Yuille, ICLR 2015, arXiv:1412.7062",
            ),
        ),
        (
            "deconvnet",
            Entry(
                "segbench.models.deconvnet:DeconvNet",
                "DeconvNet",
                "Noh, Hong & Han, ICCV 2015, arXiv:1505.04366",
            ),
        ),
        (
            "unet",
            Entry(
                "segbench.models.unet:UNet",
                "U-Net",
                "Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597",
            ),
        ),
        (
            "smp:",
            Entry(
                "segbench.models.external:smp",
                "segmentation-models-pytorch",
                "Iakubovskii, github.com/qubvel-org/segmentation_models.pytorch",
            ),
        ),
        (
            "torchvision:",
            Entry(
                "segbench.models.external:torchvision",
                "torchvision",
                "torchvision.models.segmentation, github.com/pytorch/vision",
            ),
        ),
    ],
)
