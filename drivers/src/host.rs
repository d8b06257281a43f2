//! Facts about the node: kernel, memory, CPUs, boot id, addresses.
