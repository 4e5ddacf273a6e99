"""The one table of models: names to strings, so that listing them imports neither torch nor a model.

A name with a colon at its end is a family: the part behind the colon is the other library's own name (`smp:Unet`).
Variants that a paper names have a name here, which is a class and its options; other readings are `options:` of it.
`package.module:factory` is a network of the user's own; a suite may name one only where `--allow-code` says so.
"""

from segbench.registry import Entry, Form, Registry

SEGNET = "Badrinarayanan, Kendall & Cipolla, PAMI 2017, arXiv:1511.00561"
BAYESIAN = "Kendall, Badrinarayanan & Cipolla, BMVC 2017, arXiv:1511.02680"
FCN = "Long, Shelhamer & Darrell, CVPR 2015, arXiv:1411.4038"
DEEPLAB = "Chen, Papandreou, Kokkinos, Murphy & Yuille, ICLR 2015, arXiv:1412.7062"

FIXED, PLAIN = Form({"deconvolution": "fixed"}), Form({"batch_norm": False})

MODELS = Registry(
    "model",
    [
        (
            "segnet",
            Entry(
                "segbench.models.segnet:SegNet",
                "SegNet",
                f"{SEGNET}, section 3",
                forms=(Form({"void_logit": True}),),
            ),
        ),
        (
            "bayesian-segnet",
            Entry(
                "segbench.models.segnet:SegNet",
                "Bayesian SegNet",
                BAYESIAN,
                # As many samples as the released file puts into a batch.
                inference={"name": "monte-carlo", "samples": 4},
            ),
        ),
        (
            "segnet-basic",
            Entry(
                "segbench.models.segnet_basic:SegNetBasic",
                "SegNet-Basic",
                f"{SEGNET}, section 3.1",
                forms=(Form({"bias": True}),),
            ),
        ),
        (
            "segnet-basic-encoder-addition",
            Entry(
                "segbench.models.segnet_basic:SegNetBasic",
                "SegNet-Basic-EncoderAddition",
                f"{SEGNET}, section 3.1",
                {"addition": "pooled"},
                forms=(Form({"addition": "convolved"}),),
            ),
        ),
        (
            "segnet-basic-single-channel-decoder",
            Entry(
                "segbench.models.segnet_basic:SegNetBasic",
                "SegNet-Basic-SingleChannelDecoder",
                f"{SEGNET}, section 3.1",
                {"single_channel": True},
            ),
        ),
        (
            "bayesian-segnet-basic",
            Entry(
                "segbench.models.segnet_basic:SegNetBasic",
                "Bayesian SegNet-Basic",
                BAYESIAN,
                {"dropout": 0.5, "bias": True},
                inference={"name": "monte-carlo", "samples": 8},
            ),
        ),
        (
            "bilinear-interpolation",
            Entry(
                "segbench.models.bilinear_interpolation:BilinearInterpolation",
                "Bilinear-Interpolation",
                f"{SEGNET}, section 3.1",
                forms=(Form({"upsampled": "features"}),),
            ),
        ),
        (
            "fcn-basic",
            Entry("segbench.models.fcn_basic:FCNBasic", "FCN-Basic", f"{SEGNET}, section 3.1"),
        ),
        (
            "fcn-basic-no-addition",
            Entry(
                "segbench.models.fcn_basic:FCNBasic",
                "FCN-Basic-NoAddition",
                f"{SEGNET}, section 3.1",
                {"addition": False},
            ),
        ),
        (
            "fcn-basic-no-dim-reduction",
            Entry(
                "segbench.models.fcn_basic:FCNBasic",
                "FCN-Basic-NoDimReduction",
                f"{SEGNET}, section 3.1",
                {"reduction": False},
            ),
        ),
        (
            "fcn-basic-no-addition-no-dim-reduction",
            Entry(
                "segbench.models.fcn_basic:FCNBasic",
                "FCN-Basic-NoAddition-NoDimReduction",
                f"{SEGNET}, section 3.1",
                {"addition": False, "reduction": False},
            ),
        ),
        ("fcn32s", Entry("segbench.models.fcn:FCN32s", "FCN-32s", FCN, forms=(FIXED, PLAIN))),
        ("fcn16s", Entry("segbench.models.fcn:FCN16s", "FCN-16s", FCN, forms=(FIXED, PLAIN))),
        ("fcn8s", Entry("segbench.models.fcn:FCN8s", "FCN-8s", FCN, forms=(FIXED, PLAIN))),
        (
            "deeplab-largefov",
            Entry(
                "segbench.models.deeplab_largefov:DeepLabLargeFOV",
                "DeepLab-LargeFOV",
                DEEPLAB,
                forms=(Form({"geometry": "released"}), Form({"geometry": "released", "batch_norm": False})),
            ),
        ),
        (
            "deeplab-largefov-densecrf",
            Entry(
                "segbench.models.deeplab_largefov:DeepLabLargeFOV",
                "DeepLab-LargeFOV-denseCRF",
                DEEPLAB,
                inference={"name": "dense-crf"},
            ),
        ),
        (
            "deconvnet",
            Entry(
                "segbench.models.deconvnet:DeconvNet",
                "DeconvNet",
                "Noh, Hong & Han, ICCV 2015, arXiv:1505.04366",
                forms=(Form({"form": "released"}, res=(224, 224)),),
            ),
        ),
        (
            "unet",
            Entry(
                "segbench.models.unet:UNet",
                "U-Net",
                "Ronneberger, Fischer & Brox, MICCAI 2015, arXiv:1505.04597",
                forms=(Form({"form": "released"}), Form({"padding": "same"}, res=(368, 480))),
            ),
        ),
        (
            "smp:",
            Entry(
                "segbench.models.smp:smp",
                "segmentation-models-pytorch",
                "Iakubovskii, github.com/qubvel-org/segmentation_models.pytorch",
            ),
        ),
        (
            "torchvision:",
            Entry(
                "segbench.models.torchvision:torchvision",
                "torchvision",
                "torchvision.models.segmentation, github.com/pytorch/vision",
            ),
        ),
        (
            "hf:",
            Entry(
                "segbench.models.huggingface:huggingface",
                "Transformers",
                "Wolf et al., EMNLP 2020, arXiv:1910.03771; its semantic-segmentation models",
            ),
        ),
    ],
    code=Entry("segbench.models.code:from_code", "code of yours", "package.module:factory, with --allow-code"),
)
