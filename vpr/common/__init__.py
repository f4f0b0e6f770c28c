"""What every part uses: errors, files, progress, processes, memory, devices, provenance."""
