//! The API types of group `nodelet.dev`, version `v1alpha1`.
//!
//! One Rust type per kind, from which everything else is made: the schema that the API server checks objects against,
//! the defaults it fills in, the columns `kubectl get` prints, the CRD YAML beside this crate (`yaml/`) and the
//! reference page. A field exists here once, with its documentation; nothing is repeated by hand.
//!
//! What the types promise:
//! - a schema that is structural and merges list entries by key, so that server-side apply works on every list;
//! - rules (CEL) for what a schema cannot say, with a message that names the way out;
//! - `Default` of a spec equals what an empty object deserialises to;
//! - a declared field that the agent does not carry out yet is found by [`unsupported()`], never ignored.

// The schema derive puts a copy of each struct, `pub` included, into a function.
#![allow(unreachable_pub)]
// The lint takes the columns of a kind, which have the same parts, for one attribute said twice.
#![allow(clippy::duplicated_attributes)]

pub mod common;
mod generated;
pub mod image;
pub mod labels;
pub mod network;
pub mod node_state;
pub mod quantity;
pub mod reasons;
pub mod resource_limit;
pub mod unsupported;
pub mod volume;
pub mod workload;

pub use common::{NodeSelector, SecretReference};
pub use generated::{crds, crds_yaml};
pub use image::{Image, ImageSpec, ImageStatus};
pub use network::{Network, NetworkSpec, NetworkStatus};
pub use node_state::{NodeState, NodeStateSpec, NodeStateStatus};
pub use quantity::{Quantity, QuantityError};
pub use resource_limit::{ResourceLimit, ResourceLimitSpec, ResourceLimitStatus};
pub use unsupported::{FieldError, unsupported};
pub use volume::{Volume, VolumeSpec, VolumeStatus};
pub use workload::{Workload, WorkloadSpec, WorkloadStatus};

/// The API group of every kind of this crate.
pub const GROUP: &str = "nodelet.dev";
/// The only version of the group.
pub const VERSION: &str = "v1alpha1";
/// Group and version as objects carry them.
pub const API_VERSION: &str = "nodelet.dev/v1alpha1";
