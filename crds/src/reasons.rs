//! The reasons of conditions and events: the one list.
//!
//! A reason is what programs match on, so a reason keeps its meaning for ever; the sentence for people goes into the
//! message. Use the most particular one that is true.

/// Everything asked for is there.
pub const READY: &str = "Ready";
/// Nothing was done yet: the object was just seen, or waits for its turn.
pub const PENDING: &str = "Pending";
/// Work is under way; the message says which.
pub const PROGRESSING: &str = "Progressing";
/// All parts have reached the newest generation.
pub const COMPLETE: &str = "Complete";
/// The object is being removed from the node.
pub const TERMINATING: &str = "Terminating";
/// `spec.stopped` holds it.
pub const STOPPED: &str = "Stopped";
/// The spec asks for something that cannot be; only an edit helps.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// The spec uses a declared field that this version does not carry out; the message names it.
pub const UNSUPPORTED_FIELD: &str = "UnsupportedField";
/// The object is for other nodes.
pub const NOT_SELECTED: &str = "NotSelected";
/// A pass failed for a reason of the node; it is tried again.
pub const RECONCILE_ERROR: &str = "ReconcileError";
/// containerd cannot be reached.
pub const CONTAINERD_UNAVAILABLE: &str = "ContainerdUnavailable";
/// containerd answers.
pub const CONTAINERD_REACHABLE: &str = "ContainerdReachable";

/// Some nodes are ready, others are not yet.
pub const PARTIALLY_READY: &str = "PartiallyReady";
/// At least one node failed.
pub const NODES_FAILED: &str = "NodesFailed";
/// No node matches the selector.
pub const NO_NODES: &str = "NoNodes";

/// The reference is being resolved to a digest.
pub const RESOLVING: &str = "Resolving";
/// Content is being fetched.
pub const PULLING: &str = "Pulling";
/// Layers are being unpacked.
pub const UNPACKING: &str = "Unpacking";
/// The image is on the node.
pub const PULLED: &str = "Pulled";
/// The registry or archive could not deliver the image; tried again with back-off.
pub const PULL_FAILED: &str = "PullFailed";
/// `pullPolicy: Never`, and the image is not on the node.
pub const IMAGE_NEVER_PULL: &str = "ImageNeverPull";
/// The image's archive is missing or is no image.
pub const ARCHIVE_FAILED: &str = "ArchiveFailed";
/// The image has no variant for the node's platform.
pub const PLATFORM_MISMATCH: &str = "PlatformMismatch";
/// The signature is missing or wrong.
pub const VERIFICATION_FAILED: &str = "VerificationFailed";

/// Images are still missing.
pub const IMAGES_PENDING: &str = "ImagesPending";
/// Volumes are still missing.
pub const VOLUMES_PENDING: &str = "VolumesPending";
/// Networks are still missing.
pub const NETWORKS_PENDING: &str = "NetworksPending";
/// What `dependsOn` names is not there yet.
pub const WAITING_FOR_DEPENDENCY: &str = "WaitingForDependency";
/// A named object of the namespace does not exist; the message names it.
pub const NOT_FOUND: &str = "NotFound";
/// A ConfigMap or Secret, or a key of it, is missing.
pub const CONFIG_MISSING: &str = "ConfigMissing";
/// A requested address is taken, or not in the network.
pub const ADDRESS_UNAVAILABLE: &str = "AddressUnavailable";
/// A host port is taken.
pub const PORT_CONFLICT: &str = "PortConflict";
/// A subnet overlaps with another network or a route of the node.
pub const SUBNET_CONFLICT: &str = "SubnetConflict";
/// No private subnet is free.
pub const NO_FREE_SUBNET: &str = "NoFreeSubnet";
/// The volume's path could not be made or mounted.
pub const MOUNT_FAILED: &str = "MountFailed";
/// The volume is used by another Workload, and `ReadWriteOnce` allows one.
pub const VOLUME_IN_USE: &str = "VolumeInUse";
/// The filesystem has no means to limit the volume.
pub const NO_QUOTA: &str = "NoQuota";
/// The volume is limited to its capacity.
pub const ENFORCED: &str = "Enforced";
/// The volume belongs to another node.
pub const WRONG_NODE: &str = "WrongNode";
/// A cgroup could not be made or set.
pub const CGROUP_FAILED: &str = "CgroupFailed";
/// The node's kernel lacks a controller that the limit needs.
pub const CONTROLLER_MISSING: &str = "ControllerMissing";
/// The parent of a ResourceLimit is missing or part of a loop.
pub const PARENT_UNAVAILABLE: &str = "ParentUnavailable";

/// The sandbox (namespaces, shared files) could not be made.
pub const SANDBOX_FAILED: &str = "SandboxFailed";
/// A network or an attachment to it could not be made.
pub const NETWORK_FAILED: &str = "NetworkFailed";
/// A postStart hook failed, and its container was ended.
pub const POST_START_HOOK_FAILED: &str = "PostStartHookFailed";
/// A preStop hook failed; its container was asked to stop all the same.
pub const PRE_STOP_HOOK_FAILED: &str = "PreStopHookFailed";
/// A container does not end although it was killed.
pub const KILL_FAILED: &str = "KillFailed";
/// The node could not be looked at.
pub const NODE_UNREADABLE: &str = "NodeUnreadable";
/// A condition of the node keeps it from working; the message says which.
pub const NODE_NOT_READY: &str = "NodeNotReady";

/// Init containers are running.
pub const INITIALIZING: &str = "Initializing";
/// An init container failed.
pub const INIT_FAILED: &str = "InitFailed";
/// The containers are being started.
pub const STARTING: &str = "Starting";
/// The containers run.
pub const RUNNING: &str = "Running";
/// A container runs but its readiness or startup probe does not succeed.
pub const CONTAINERS_NOT_READY: &str = "ContainersNotReady";
/// A container ended and is started again after a growing pause.
pub const CRASH_LOOP_BACK_OFF: &str = "CrashLoopBackOff";
/// A container could not be created; the message holds the cause.
pub const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";
/// A container could not be started; the message holds the cause.
pub const RUN_CONTAINER_ERROR: &str = "RunContainerError";
/// All containers ended well.
pub const COMPLETED: &str = "Completed";
/// A container ended with another exit code than 0 and is not started again.
pub const ERROR: &str = "Error";
/// It ran for longer than `activeDeadlineSeconds`.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// A container failed more often than `backoffLimit` allows.
pub const BACKOFF_LIMIT_EXCEEDED: &str = "BackoffLimitExceeded";
/// The kernel killed a container for its memory limit.
pub const OOM_KILLED: &str = "OOMKilled";
/// A liveness or startup probe killed the container.
pub const UNHEALTHY: &str = "Unhealthy";
/// A container is in its way down.
pub const STOPPING: &str = "Stopping";
/// An update replaced containers.
pub const UPDATED: &str = "Updated";
/// An update did not get good.
pub const UPDATE_FAILED: &str = "UpdateFailed";
/// An update failed and the former generation runs again.
pub const ROLLED_BACK: &str = "RolledBack";

/// More memory is used than a lowered limit allows; it is set once the use has fallen.
pub const ABOVE_LIMIT: &str = "AboveLimit";
/// A change of limits waits: the node has no room for what it requests now.
pub const DEFERRED: &str = "Deferred";
/// A change of limits cannot be carried out on this node.
pub const INFEASIBLE: &str = "Infeasible";
/// Limits of a running container were changed.
pub const RESIZE_COMPLETED: &str = "ResizeCompleted";

/// The node has not enough left of what the Workload requests.
pub const INSUFFICIENT_RESOURCES: &str = "InsufficientResources";

/// The disk is too full for the image, also without the images that nobody needs.
pub const INSUFFICIENT_STORAGE: &str = "InsufficientStorage";

/// It had to go because the node was short of memory or disk; it comes back.
pub const EVICTED: &str = "Evicted";
/// It had to go for a Workload of higher priority.
pub const PREEMPTED: &str = "Preempted";

/// The node has enough of it.
pub const NO_PRESSURE: &str = "NoPressure";
/// Memory is short.
pub const MEMORY_PRESSURE: &str = "MemoryPressure";
/// Disk space or inodes are short.
pub const DISK_PRESSURE: &str = "DiskPressure";

// Event-only reasons: what happened, in the past tense.

/// Files of an image are torn or missing.
pub const IMAGE_DAMAGED: &str = "ImageDamaged";
/// An image that was damaged is whole again.
pub const IMAGE_REPAIRED: &str = "ImageRepaired";
/// Images that nobody needed were removed.
pub const IMAGES_COLLECTED: &str = "ImagesCollected";
/// A container was created.
pub const CREATED: &str = "Created";
/// A container was started.
pub const STARTED: &str = "Started";
/// A container was asked to stop.
pub const KILLING: &str = "Killing";
/// A container waits before it is started again.
pub const BACK_OFF: &str = "BackOff";
/// A kernel object that somebody else removed or changed was put back.
pub const REPAIRED: &str = "Repaired";
/// Running containers of a former agent were taken over.
pub const ADOPTED: &str = "Adopted";
/// A file of a manifest source could not be used; the message has file, line and field.
pub const MANIFEST_REFUSED: &str = "ManifestRefused";
/// Something was removed from the node.
pub const REMOVED: &str = "Removed";
