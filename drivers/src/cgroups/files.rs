//! Reading and writing the files of one cgroup directory.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Error;
use crate::ids::CgroupPath;

/// One directory of one hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) path: CgroupPath,
    pub(super) dir: PathBuf,
}

impl Group {
    /// The directory of `path` in the hierarchy at `root`.
    pub(super) fn new(root: &Path, path: &CgroupPath) -> Self {
        Self { path: path.clone(), dir: root.join(&path.as_str()[1..]) }
    }

    pub(super) fn error(&self, doing: String) -> impl FnOnce(io::Error) -> Error {
        let path = self.path.to_string();
        move |source| Error::Io { path, doing, source }
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.dir.join(file).exists()
    }

    /// The file's text; `None` when it does not exist (the controller is not there, or the cgroup is gone).
    pub(super) fn read(&self, file: &str) -> Result<Option<String>, Error> {
        match std::fs::read_to_string(self.dir.join(file)) {
            Ok(text) => Ok(Some(text)),
            // ENODEV: the cgroup was removed after the file was opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
                Ok(None)
            }
            Err(error) => Err(self.error(format!("reading {file}"))(error)),
        }
    }

    /// The file's only number.
    pub(super) fn read_number(&self, file: &str) -> Result<Option<u64>, Error> {
        Ok(self.read(file)?.and_then(|text| text.trim().parse().ok()))
    }

    /// The number behind `key` in a file of `key value` lines.
    pub(super) fn read_key(&self, file: &str, key: &str) -> Result<Option<u64>, Error> {
        Ok(self.read(file)?.and_then(|text| find_key(&text, key)))
    }

    /// Writes `value`; the file has to exist.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        self.try_write(file, value).map_err(self.error(format!("writing {value:?} to {file}")))
    }

    pub(super) fn try_write(&self, file: &str, value: &str) -> io::Result<()> {
        // One write call: each is one command to the kernel.
        OpenOptions::new().write(true).truncate(true).open(self.dir.join(file))?.write_all(value.as_bytes())
    }

    /// Writes `value` unless the file says so already.
    pub(super) fn set(&self, file: &str, value: &str) -> Result<(), Error> {
        if self.read(file)?.is_some_and(|found| found.trim() == value) {
            return Ok(());
        }
        self.write(file, value)
    }

    /// Sets a limit that may be declared or not; `default` lifts it. A file that is missing is an error only for a
    /// declared limit.
    pub(super) fn set_limit(&self, limit: &Limit<'_>, declared: Option<String>) -> Result<(), Error> {
        match declared {
            None if !self.has(limit.file) => Ok(()),
            None => self.set(limit.file, limit.default),
            Some(_) if !self.has(limit.file) => {
                Err(Error::Unsupported { path: self.path.to_string(), limit: limit.name, needs: limit.needs })
            }
            Some(value) => self.set(limit.file, &value),
        }
    }

    /// Sets `hugetlb.<size>.<file>` for the declared sizes; `default` lifts the limits of all others.
    pub(super) fn set_hugepages(
        &self,
        declared: &BTreeMap<String, u64>,
        file: &str,
        default: &str,
    ) -> Result<(), Error> {
        let is_undeclared = |name: &str| {
            let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(file)?.strip_suffix('.'));
            size.is_some_and(|size| !size.contains('.') && !declared.contains_key(size))
        };
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str().filter(|name| is_undeclared(name)) {
                self.set(name, default)?;
            }
        }
        declared.iter().try_for_each(|(size, bytes)| {
            let file = format!("hugetlb.{size}.{file}");
            let limit = Limit { name: "hugepages", file: &file, default, needs: "huge pages of this size" };
            self.set_limit(&limit, Some(bytes.to_string()))
        })
    }

    /// Cgroups below this one, parents first; this one is not among them.
    pub(super) fn descendants(&self) -> Result<Vec<Group>, Error> {
        let mut found = Vec::new();
        let mut next = vec![self.clone()];
        while let Some(group) = next.pop() {
            let children = group.children(|_| true)?;
            found.extend(children.iter().cloned());
            next.extend(children);
        }
        found.sort_by_key(|group| (group.path.as_str().matches('/').count(), group.path.clone()));
        Ok(found)
    }

    /// The cgroups right below this one whose names are `wanted`.
    pub(super) fn children(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Group>, Error> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.error("listing it".to_owned())(error)),
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let name = entry.file_name().into_string().ok().filter(|name| is_dir && wanted(name));
            if let Some(path) = name.and_then(|name| self.path.join(&name).ok()) {
                found.push(Group { path, dir: entry.path() });
            }
        }
        Ok(found)
    }

    /// Pids of the processes in it, without those below it.
    pub(super) fn pids(&self) -> Result<Vec<u32>, Error> {
        match self.read("cgroup.procs") {
            // 0 stands for a process outside of our PID namespace.
            Ok(text) => {
                Ok(text.iter().flat_map(|t| t.lines()).filter_map(|l| l.parse().ok()).filter(|p| *p > 0).collect())
            }
            // A threaded cgroup has no processes of its own.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The number behind `key` in `key value` lines.
pub(super) fn find_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A file that holds one limit.
pub(super) struct Limit<'a> {
    /// Its name to the user.
    pub(super) name: &'static str,
    pub(super) file: &'a str,
    /// What lifts it.
    pub(super) default: &'a str,
    /// What the node lacks when the file is missing.
    pub(super) needs: &'static str,
}
