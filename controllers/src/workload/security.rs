//! From security contexts to what a container may do. Without a word the protecting defaults hold.

use std::path::{Path, PathBuf};

use nodelet_crds::workload::security::{ProcMount, SecurityProfile, SecurityProfileType};
use nodelet_crds::workload::{Container, Workload};
use nodelet_drivers::runtime::{AppArmor, Seccomp, Security};

use crate::invalid::Invalid;

/// What one container may do. Localhost profiles are looked for below `<dataDir>/seccomp`.
pub fn security(object: &Workload, container: &Container, path: &str, data_dir: &Path) -> Result<Security, Invalid> {
    let common = object.spec.security_context.as_ref();
    let own = container.security_context.clone().unwrap_or_default();
    let mut groups: Vec<u32> = common.map(|c| c.supplemental_groups.clone()).unwrap_or_default();
    groups.extend(common.and_then(|c| c.fs_group));
    groups.sort_unstable();
    groups.dedup();
    let profile = own.seccomp_profile.as_ref().or_else(|| common.and_then(|c| c.seccomp_profile.as_ref()));
    let capabilities = own.capabilities.unwrap_or_default();
    Ok(Security {
        run_as_user: own.run_as_user,
        run_as_group: own.run_as_group,
        run_as_non_root: own.run_as_non_root == Some(true),
        supplemental_groups: groups,
        privileged: own.privileged == Some(true),
        read_only_root: own.read_only_root_filesystem == Some(true),
        allow_privilege_escalation: own.allow_privilege_escalation == Some(true) || own.privileged == Some(true),
        add_capabilities: capabilities.add,
        drop_capabilities: capabilities.drop,
        seccomp: seccomp(profile, path, data_dir)?,
        apparmor: apparmor(own.app_armor_profile.as_ref()),
        unmasked_proc: own.proc_mount == Some(ProcMount::Unmasked),
    })
}

fn seccomp(profile: Option<&SecurityProfile>, path: &str, data_dir: &Path) -> Result<Seccomp, Invalid> {
    let Some(profile) = profile else { return Ok(Seccomp::RuntimeDefault) };
    Ok(match profile.type_ {
        SecurityProfileType::RuntimeDefault => Seccomp::RuntimeDefault,
        SecurityProfileType::Unconfined => Seccomp::Unconfined,
        SecurityProfileType::Localhost => {
            let name = PathBuf::from(profile.localhost_profile.clone().unwrap_or_default());
            if name.is_absolute() || name.components().any(|part| part.as_os_str() == "..") {
                return Err(Invalid::field(
                    format!("{path}.securityContext.seccompProfile.localhostProfile"),
                    format!("must be relative to {}/seccomp and without '..'", data_dir.display()),
                ));
            }
            Seccomp::Localhost(data_dir.join("seccomp").join(name))
        }
    })
}

fn apparmor(profile: Option<&SecurityProfile>) -> Option<AppArmor> {
    let profile = profile?;
    Some(match profile.type_ {
        SecurityProfileType::RuntimeDefault => AppArmor::RuntimeDefault,
        SecurityProfileType::Unconfined => AppArmor::Unconfined,
        SecurityProfileType::Localhost => AppArmor::Localhost(profile.localhost_profile.clone().unwrap_or_default()),
    })
}
