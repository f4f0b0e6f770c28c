"""The command line: every flag, which mode reads it, and the options of a call.

after.py        Which command usually comes after one, in full
app.py          reads the command line and calls the mode: where main.py and the command vpr begin
choice.py       What follows from few words: a model by a short name, the model of a folder, a folder by its content
descriptors.py  Options -> the descriptors of a split, read from a file or made, and kept if that is wanted
examples.py     Three command lines for each mode, which its help ends with
flags.py        the dataclasses whose fields are flags; which are refused, typed or stored
load.py         Options -> the model that they name, ready to be described with
locating.py     Options -> what is asked of images, and the locator that answers it
options.py      The options of a call: defaults, then the flags of a stored run, then what the user typed
parser.py       The parser of all flags, what --help and --help-all print, and what the program calls itself
settings.py     The flags that belong to no part below the command line, as fields of one dataclass like all others
specs.py        Options -> specs: the one place where flags become what the parts below the command line take
"""
