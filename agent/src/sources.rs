//! Where manifests come from, other than through the API.

pub mod directory;
pub mod inventory;
pub mod metrics;
pub mod plan;
pub mod pod;
pub mod scan;
