"""The program: reads the command line and calls the mode. `main.py` and the command `vpr` both begin here."""

import importlib
import io
import sys
from importlib.metadata import version

from vpr.cli.after import next_command
from vpr.cli.choice import MODES as FOLDER_MODES
from vpr.cli.choice import remember
from vpr.cli.flags import PARALLEL_MODES
from vpr.cli.options import parse_options
from vpr.common import processes
from vpr.common.errors import UserError
from vpr.common.memory import keep_large_blocks, out_of_memory_says
from vpr.data.names import is_text, shown


def main(arguments: list[str] | None = None) -> int:
    """Run one mode; `arguments` are the words of the command line, None those that the program was started with.
    Returns the exit code: 0, 2 after a mistake the user can mend, or 130 after Ctrl-C."""
    options = None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the console has no characters for
    try:
        for word in sys.argv[1:] if arguments is None else arguments:
            if not is_text(word):
                raise UserError(f"found the name {word}, wanted one of UTF-8: rename it (convmv -f latin1 -t utf8)")
        options = parse_options(arguments)
        if processes.launched() > 1 and options.mode not in PARALLEL_MODES:
            raise UserError(
                f"--mode={options.mode} runs in one process, found {processes.launched()}: start it without torchrun, "
                f"which is for {', '.join(PARALLEL_MODES[:-1])} and {PARALLEL_MODES[-1]}"
            )
        for note in options.notes if processes.launched_rank() == 0 else ():
            print(note, file=sys.stderr if options.json else sys.stdout, flush=True)
        # Imported here, not above: torch and FAISS take seconds, `--help` must not.
        mode = importlib.import_module(module_of(options.mode))
        keep_large_blocks()
        remedy = "give a smaller --cacheBatchSize or --imageSize, or --device=cpu"
        with processes.process_group(), out_of_memory_says(remedy):
            mode.run(options)
        if processes.launched_rank() == 0:
            if options.mode in FOLDER_MODES:
                remember(options)
            if following := next_command(options):
                print(f"next: {following}")
    except UserError as error:
        where = f" in process {rank}" if (rank := processes.launched_rank()) else ""
        print(f"error{where}: {shown(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        print(f"error: {of_two_builds(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resume = ": --mode=train --resume goes on with the newest run" if options and options.mode == "train" else ""
        print(f"interrupted{resume}", file=sys.stderr)
        return 130
    return 0


def of_two_builds(error: RuntimeError) -> str:
    """What to do where torchvision cannot be imported beside torch, whatever imports it first."""
    return (
        f"torch {version('torch')} and torchvision {version('torchvision')} are not of one build ({error}): pip "
        "install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu (with a GPU "
        "without --index-url)"
    )


def module_of(mode: str) -> str:
    """The module of a mode: its name in `vpr.modes`, or of the one that does its work."""
    return f"vpr.modes.{ {'import': 'import_model', 'distill': 'train'}.get(mode, mode) }"
