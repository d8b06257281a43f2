//! The clients that carry out the table's actions.

mod kube_rs;
mod kubectl;
mod python;

pub use kube_rs::KubeRs;
pub use kubectl::Kubectl;
pub use python::Python;
