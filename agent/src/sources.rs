//! Where manifests come from, other than through the API.

pub mod inventory;
pub mod plan;
pub mod pod;
pub mod scan;
