//! The driver against a private containerd and a real registry. `faults` puts a proxy in between.

mod archives;
mod faults;
mod fixture;
mod hostile;
mod pulls;
mod signatures;
