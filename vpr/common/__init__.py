"""What every part uses: errors, files, progress, processes, memory, devices, provenance.

device.py      Which device a command computes on, and in which number format (--device, --precision)
errors.py      The one exception that users see as a line instead of a traceback
files.py       Files that are either whole or not there
memory.py      Allocator tuning, available memory, and one-line out-of-memory errors
processes.py   Several processes, one per GPU or per share of the cores, started by torchrun
progress.py    Progress that is a bar on a terminal and a few plain lines everywhere else
provenance.py  What our files say of themselves: what made them, and a checksum over every byte
settings.py    a field of a frozen dataclass that is a flag of the command line
"""
