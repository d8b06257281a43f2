//! Users and groups of an image, and who a container runs as.

use oci_spec::runtime::User;

use super::layers;
use super::{Error, Security};

/// `/etc/passwd` and `/etc/group` of an image; lines that are not understood are left out, as libc does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    users: Vec<Account>,
    groups: Vec<Group>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// All groups, the first one included.
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

impl Accounts {
    /// Reads the two files from a stack of layers. Absent files are empty ones.
    pub(super) fn read(layers: &[std::path::PathBuf]) -> std::io::Result<Self> {
        let text = |path| -> std::io::Result<String> {
            let data = layers::read_file(layers, path)?.unwrap_or_default();
            Ok(String::from_utf8_lossy(&data).into_owned())
        };
        Ok(Self::parse(&text("etc/passwd")?, &text("etc/group")?))
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let users = passwd.lines().filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
            Some(Account {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: home.to_owned(),
            })
        });
        let groups = group.lines().filter_map(|line| {
            let fields: Vec<&str> = line.trim().split(':').collect();
            let [name, _, gid, members @ ..] = &fields[..] else { return None };
            let members = members.first().map_or("", |m| m).split(',').filter(|m| !m.is_empty());
            Some(Group {
                name: (*name).to_owned(),
                gid: gid.parse().ok()?,
                members: members.map(str::to_owned).collect(),
            })
        });
        Self { users: users.collect(), groups: groups.collect() }
    }

    /// Who a container with these wishes and the image's `USER` runs as.
    ///
    /// A number needs no entry. Without a group the user's own is taken, 0 without an entry. Groups of the user in
    /// the image are added unless the image names one group outright.
    pub(super) fn resolve(&self, wishes: &Security, image_user: &str) -> Result<Identity, Error> {
        let (user, group) = image_user.split_once(':').unwrap_or((image_user, ""));
        let (uid, account) = match wishes.run_as_user {
            Some(uid) => (uid, self.users.iter().find(|a| a.uid == uid)),
            None => self.user(user)?,
        };
        // A group beside USER belongs to that user, not to one that replaces it.
        let named_group = if wishes.run_as_user.is_none() { group } else { "" };
        let gid = match (wishes.run_as_group, named_group) {
            (Some(gid), _) => gid,
            (None, "") => account.map_or(0, |a| a.gid),
            (None, name) => self.group(name)?,
        };
        if wishes.run_as_non_root && uid == 0 {
            return Err(invalid(
                "securityContext.runAsNonRoot",
                "the container would run as root; set runAsUser or take an image with another USER".to_owned(),
            ));
        }
        let mut groups = vec![gid];
        if let Some(account) = account.filter(|_| named_group.is_empty()) {
            groups.extend(self.groups.iter().filter(|g| g.members.contains(&account.name)).map(|g| g.gid));
        }
        groups.extend(&wishes.supplemental_groups);
        let mut seen = std::collections::BTreeSet::new();
        groups.retain(|gid| seen.insert(*gid));
        let home = account.map(|a| a.home.clone()).filter(|h| !h.is_empty()).unwrap_or_else(|| "/".to_owned());
        Ok(Identity { uid, gid, groups, home })
    }

    fn user(&self, user: &str) -> Result<(u32, Option<&Account>), Error> {
        let user = if user.is_empty() { "0" } else { user };
        if let Some(account) = self.users.iter().find(|a| a.name == user) {
            return Ok((account.uid, Some(account)));
        }
        match user.parse::<u32>() {
            Ok(uid) => Ok((uid, self.users.iter().find(|a| a.uid == uid))),
            Err(_) => Err(invalid(
                "securityContext.runAsUser",
                format!("the image runs as {user:?}, which is not in its /etc/passwd; set a number"),
            )),
        }
    }

    fn group(&self, group: &str) -> Result<u32, Error> {
        if let Some(found) = self.groups.iter().find(|g| g.name == group) {
            return Ok(found.gid);
        }
        group.parse().map_err(|_| {
            invalid(
                "securityContext.runAsGroup",
                format!("the image runs as group {group:?}, which is not in its /etc/group; set a number"),
            )
        })
    }
}

impl Identity {
    /// As the OCI specification has it. The first group is repeated among the additional ones: a process must not
    /// be able to drop it by dropping those (CVE-2022-36109).
    pub(super) fn to_oci(&self) -> User {
        let mut user = User::default();
        user.set_uid(self.uid);
        user.set_gid(self.gid);
        user.set_additional_gids(Some(self.groups.clone()));
        user
    }
}

fn invalid(field: &str, message: String) -> Error {
    Error::Invalid { field: field.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::parse(
            "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001:,,,:/home/app:\n",
            "root:x:0:\nextra:x:2000:other,app\nempty:x:3000\n",
        )
    }

    fn identity(wishes: &Security, image_user: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        accounts().resolve(wishes, image_user).map(|i| (i.uid, i.gid, i.groups, i.home)).map_err(|e| e.to_string())
    }

    #[test]
    fn image_users() {
        let none = Security::default();
        let cases = [
            ("", 0, vec![0], "/root"),
            ("app", 1000, vec![1001, 2000], "/home/app"),
            ("1000", 1000, vec![1001, 2000], "/home/app"),
            ("app:extra", 1000, vec![2000], "/home/app"),
            ("app:7", 1000, vec![7], "/home/app"),
            ("4711", 4711, vec![0], "/"),
        ];
        for (user, uid, groups, home) in cases {
            // The first group is the process's own.
            let want = Ok((uid, groups[0], groups, home.to_owned()));
            assert_eq!(identity(&none, user), want, "USER {user}");
        }
    }

    #[test]
    fn wishes_replace_the_image() {
        let wishes = Security { run_as_user: Some(1000), supplemental_groups: vec![5, 2000], ..Security::default() };
        assert_eq!(identity(&wishes, "root:extra"), Ok((1000, 1001, vec![1001, 2000, 5], "/home/app".to_owned())));
        let wishes = Security { run_as_group: Some(9), ..Security::default() };
        assert_eq!(identity(&wishes, "app"), Ok((1000, 9, vec![9, 2000], "/home/app".to_owned())));
    }

    #[test]
    fn refusals_name_the_field() {
        assert!(identity(&Security::default(), "ghost").unwrap_err().starts_with("securityContext.runAsUser: "));
        assert!(identity(&Security::default(), "app:ghosts").unwrap_err().starts_with("securityContext.runAsGroup: "));
        let careful = Security { run_as_non_root: true, ..Security::default() };
        assert!(identity(&careful, "").unwrap_err().starts_with("securityContext.runAsNonRoot: "));
        assert!(identity(&careful, "app").is_ok());
    }
}
