"""Options of programs that users come from: what each is called here, or why it has no name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mpiimg.tools.registry import tool, tool_names


@dataclass(frozen=True)
class Foreign:
    """An option of another program.

    Parameters
    ----------
    program : str
    words : tuple of str
        How it is written there.
    options : tuple of str
        Names of our parameters and arguments that it may stand for; the first that a tool has is named.
    says : str
        What is to be said besides, or in the place of an option.
    """

    program: str
    words: tuple[str, ...]
    options: tuple[str, ...] = ()
    says: str = ""


_RANKS = "the ranks that mpiexec or srun starts do the work, one thread each: mpiexec -n N"
_WINDOWS = "denoising is by non-local means, whose windows are --patch-radius and --block-radius"
_SIGMA = "denoising is by non-local means, and --sigma says how the noise level is found"
_SPACE = "results stay in the space and the resolution of the input"
_OTSU = "the threshold of the mask is found from the image; --mask-method chooses how"

#: Of diffusion MRI, and of surveys.
FOREIGN: dict[str, tuple[Foreign, ...]] = {
    "neuro": (
        Foreign("MRtrix3", ("-mask",), ("mask",)),
        Foreign("MRtrix3", ("-grad",), ("grad",)),
        Foreign("MRtrix3", ("-fslgrad",), says="write --bvecs FILE --bvals FILE"),
        Foreign("MRtrix3", ("-bvalue_scaling",), ("b_scaling",)),
        Foreign("MRtrix3", ("-nthreads",), says=_RANKS),
        Foreign("MRtrix3", ("-force",), ("force",)),
        Foreign("MRtrix3", ("-quiet",), ("quiet",)),
        Foreign("MRtrix3", ("-info", "-debug"), ("verbose",)),
        Foreign("MRtrix3", ("-config",), says="--config here takes a file of options"),
        Foreign("dwidenoise", ("-extent",), says=_WINDOWS),
        Foreign(
            "dwidenoise",
            ("-noise",),
            says="the map of the noise is written in any case, as *_desc-noise_dwimap",
        ),
        Foreign("dwidenoise", ("-estimator",), says=_SIGMA),
        Foreign("dwidenoise", ("-datatype",), says="results are float32"),
        Foreign("dwi2tensor", ("-ols",), says="--method ols does that"),
        Foreign(
            "dwi2tensor",
            ("-iter",),
            says="--method iwls finds weights twice, which is the default there too, and --method wls once",
        ),
        Foreign(
            "dwi2tensor", ("-b0",), says="the signal without weighting is written in any case, as *param-s0*"
        ),
        Foreign("dwi2tensor", ("-predicted_signal",), ("fit_residual",), "the signal itself is not written"),
        Foreign("dwi2tensor", ("-dkt",), says="kurtosis is not fitted"),
        Foreign("dwi2mask", ("-clean_scale",), says="--mask-method dwi2mask cleans with a scale of 2"),
        Foreign("bet", ("-f", "-g"), says=_OTSU),
        Foreign("bet", ("-m",), says="the mask is written in any case, as *_desc-brain_mask"),
        Foreign("bet", ("-R", "-S", "-B"), says="no surface is fitted, and no centre looked for"),
        Foreign("bet", ("-r", "-c"), says="no surface is fitted, and no centre looked for"),
        Foreign("bet", ("-n",), says="no image of the brain alone is written, but its mask"),
        Foreign("dtifit", ("-k", "--data"), says="the image stands without an option"),
        Foreign("dtifit", ("-b",), ("bvals",)),
        Foreign("dtifit", ("-r",), ("bvecs",)),
        Foreign("dtifit", ("-m",), ("mask",)),
        Foreign("dtifit", ("--sse",), ("fit_residual",), "which is the root of its mean"),
        Foreign(
            "dtifit",
            ("--save_tensor",),
            says="the tensor is written in any case; --tensor-order fsl orders it so",
        ),
        Foreign("dtifit", ("--wls",), says="--method wls does that"),
        Foreign("dtifit", ("--kurt", "--kurtdir"), says="kurtosis is not fitted"),
        Foreign("dtifit", ("--gradnonlin",), says="gradients count as equal in all voxels"),
        Foreign("fMRIPrep", ("--output-spaces", "--output_spaces"), says=_SPACE),
        Foreign("fMRIPrep", ("--mem",), ("memory",), "which is that of a rank"),
        Foreign(
            "fMRIPrep", ("--anat-only", "--anat_only", "--bold2t1w-init"), says="no anatomy is processed"
        ),
        Foreign("QSIPrep", ("--output-resolution", "--output_resolution"), says=_SPACE),
        Foreign("QSIPrep", ("--denoise-method", "--denoise_method"), says=_SIGMA),
        Foreign("QSIPrep", ("--dwi-denoise-window", "--dwi_denoise_window"), says=_WINDOWS),
        Foreign("QSIPrep", ("--unringing-method", "--unringing_method"), says="ringing is not removed"),
        Foreign(
            "QSIPrep",
            ("--hmc-model", "--hmc_model", "--eddy-config", "--eddy_config", "--pepolar-method"),
            says="motion and distortions are not corrected: topup and eddy go on from the denoised series",
        ),
    ),
    "astro": (
        Foreign("SWarp and source-extractor", ("-c",), ("config",)),
        Foreign("SWarp and source-extractor", ("-d", "-dd", "-dp"), ("dump_config",)),
        Foreign("SWarp and source-extractor", ("-NTHREADS",), says=_RANKS),
        Foreign("SWarp and source-extractor", ("-VERBOSE_TYPE",), ("verbose",), "or --quiet"),
        Foreign("SWarp and source-extractor", ("-WEIGHT_IMAGE",), ("weight_file",)),
        Foreign("SWarp and source-extractor", ("-WEIGHT_TYPE",), ("weight_file_is",)),
        Foreign("SWarp", ("-IMAGEOUT_NAME",), ("out",), "a folder of patches"),
        Foreign("SWarp", ("-WEIGHTOUT_NAME",), ("weight",), "a plane of each patch"),
        Foreign("SWarp", ("-COMBINE_TYPE",), ("statistic",), "in small letters"),
        Foreign("SWarp", ("-CLIP_SIGMA",), ("sigma",), "with --statistic clip"),
        Foreign("SWarp", ("-CENTER",), ("center",)),
        Foreign("SWarp", ("-PIXEL_SCALE",), ("pixel_scale",)),
        Foreign("SWarp", ("-IMAGE_SIZE",), ("patch",), "the side of a patch: there are as many as it takes"),
        Foreign("SWarp", ("-RESAMPLING_TYPE",), ("resampling",), "auto or lanczos3"),
        Foreign("SWarp", ("-RESAMPLE_DIR",), ("work_dir",)),
        Foreign("SWarp", ("-SUBTRACT_BACK",), ("mesh",), "the sky is subtracted in any case"),
        Foreign("SWarp", ("-BACK_SIZE",), ("mesh",)),
        Foreign("SWarp", ("-GAIN_KEYWORD", "-GAIN_DEFAULT"), ("gain",)),
        Foreign("SWarp", ("-SATLEV_KEYWORD", "-SATLEV_DEFAULT"), ("saturate",)),
        Foreign("SWarp", ("-FSCALE_KEYWORD", "-FSCALE_DEFAULT"), ("zero_point",)),
        Foreign("SWarp", ("-MEM_MAX",), ("memory",), "as in 4G"),
        Foreign("SWarp", ("-DELETE_TMPFILES",), ("keep_work",)),
        Foreign("source-extractor", ("-CATALOG_NAME",), ("catalogue", "out")),
        Foreign("source-extractor", ("-CATALOG_TYPE",), ("catalogue", "out"), "whose ending says the format"),
        Foreign(
            "source-extractor",
            ("-DETECT_THRESH", "-ANALYSIS_THRESH"),
            ("threshold",),
            "and with --threshold-noise pixel it means the same",
        ),
        Foreign("source-extractor", ("-DETECT_MINAREA",), ("min_area",)),
        Foreign(
            "source-extractor", ("-DEBLEND_MINCONT", "-DEBLEND_NTHRESH"), ("no_deblend",), "or its default"
        ),
        Foreign(
            "source-extractor", ("-PHOT_APERTURES",), ("apertures",), "two radii: half of these diameters"
        ),
        Foreign("source-extractor", ("-BACK_SIZE",), ("detection_mesh",)),
        Foreign("source-extractor", ("-SATUR_LEVEL", "-SATUR_KEY"), ("saturate",)),
        Foreign("source-extractor", ("-MAG_ZEROPOINT",), ("zero_point",)),
        Foreign("source-extractor", ("-GAIN", "-GAIN_KEY"), ("gain",)),
        Foreign("source-extractor", ("-PIXEL_SCALE",), says="it follows from the WCS of the patches"),
        Foreign("source-extractor", ("-SEEING_FWHM",), says="the seeing is measured by stars"),
        Foreign("source-extractor", ("-CHECKIMAGE_TYPE",), ("segmentation",), "and --background"),
        Foreign("astroscrappy", ("--niter", "niter"), ("cr_iterations",)),
        Foreign("astroscrappy", ("--readnoise", "readnoise"), ("read_noise",)),
        Foreign("astroscrappy", ("--satlevel", "satlevel"), ("saturate",)),
        Foreign(
            "astroscrappy",
            ("--cleantype", "--fsmode", "--psfmodel", "--psffwhm", "--sepmed"),
            says="it is as in L.A.Cosmic: median filters find fine structure, and replace what is found",
        ),
    ),
}


def answers(word: str, domain: str, here: Collection[str]) -> str:
    """Return what an option of other programs is called here; empty where it is none that is known.

    Parameters
    ----------
    word : str
        As it was given: -DETECT_THRESH, --niter.
    domain : str
        Of the tool that was given it; empty where it is of none.
    here : collection of str
        Names of the options of this tool.
    """
    domains = [domain] if domain in FOREIGN else [*FOREIGN]
    known = [one for name in domains for one in FOREIGN[name] if word in one.words]
    return "; ".join([answer for one in known if (answer := _answer(word, one, domain, here))][:2])


def _answer(word: str, foreign: Foreign, domain: str, here: Collection[str]) -> str:
    whose = f"{word} of {foreign.program}"
    if not foreign.options:
        return f"{whose}: {foreign.says}"
    besides = f" ({foreign.says})" if foreign.says else ""
    flags = {name: "--" + name.replace("_", "-") for name in foreign.options}
    for name, flag in flags.items():
        if name in here:
            return f"{whose} is {flag} here{besides}"
    for name, flag in flags.items():
        if having := ", ".join(tools_with(name, domain)):
            return f"{whose} is {flag} of {having}{besides}"
    return ""


def tools_with(name: str, domain: str = "") -> list[str]:
    """Return the names of tools that have an option, those with fewest others first: of a domain, or any."""
    having = [one for one in map(tool, tool_names()) if name in one.names and domain in ("", one.domain)]
    return [one.name for one in sorted(having, key=lambda one: len(one.parameters))[:2]]
