//! The text of the files that a sandbox gives to its containers. Pure.

use super::EtcFiles;

const NOTE: &str = "# Written by nodelet: changes do not last.\n";

/// `/etc/hosts`: the node's own (`node`, for a workload in the node's network) or the usual names of the loopback,
/// then those of the workload.
pub(super) fn hosts(files: &EtcFiles, node: Option<&str>) -> String {
    let mut text = NOTE.to_owned();
    match node {
        Some(node) => {
            text.push_str(node);
            if !node.is_empty() && !node.ends_with('\n') {
                text.push('\n');
            }
        }
        None => text.push_str(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
        ),
    }
    for (address, names) in &files.hosts {
        text.push_str(&format!("{address}\t{}\n", names.join(" ")));
    }
    text
}

/// `/etc/resolv.conf`: what is declared; without name servers the node's lines, with what is declared in their place.
pub(super) fn resolv_conf(files: &EtcFiles, node: &str) -> String {
    let mut text = NOTE.to_owned();
    if files.nameservers.is_empty() {
        for line in node.lines().map(str::trim) {
            let replaced = match line.split_whitespace().next() {
                None => true,
                Some("search" | "domain") => !files.searches.is_empty(),
                Some("options") => !files.options.is_empty(),
                Some(word) => word.starts_with(['#', ';']),
            };
            if !replaced {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    for server in &files.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if files.node_searches && files.searches.is_empty() && !files.nameservers.is_empty() {
        let searches = |line: &&str| matches!(line.split_whitespace().next(), Some("search" | "domain"));
        // As libraries do: the last one counts.
        if let Some(line) = node.lines().map(str::trim).rfind(searches) {
            text.push_str(line);
            text.push('\n');
        }
    }
    for (word, values) in [("search", &files.searches), ("options", &files.options)] {
        if !values.is_empty() {
            text.push_str(&format!("{word} {}\n", values.join(" ")));
        }
    }
    text
}

/// Whether this resolv.conf only names a resolver on the node's loopback that is systemd-resolved's, which a
/// container in a network of its own cannot reach.
pub(super) fn names_only_resolved(node: &str) -> bool {
    let mut servers = node.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).peekable();
    servers.peek().is_some() && servers.all(|server| server == "127.0.0.53")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_the_loopback_and_the_workload() {
        let files = EtcFiles {
            hosts: vec![("10.89.1.5".parse().unwrap(), vec!["web".to_owned(), "www".to_owned()])],
            ..EtcFiles::default()
        };
        let text = hosts(&files, None);
        assert!(text.contains("127.0.0.1\tlocalhost\n") && text.ends_with("10.89.1.5\tweb www\n"), "{text}");
        assert_eq!(hosts(&files, Some("1.2.3.4 node")), format!("{NOTE}1.2.3.4 node\n10.89.1.5\tweb www\n"));
    }

    #[test]
    fn declared_name_servers_replace_the_nodes() {
        let node = "# a comment\nnameserver 9.9.9.9\nsearch lan\noptions edns0\n";
        assert_eq!(
            resolv_conf(&EtcFiles::default(), node),
            format!("{NOTE}nameserver 9.9.9.9\nsearch lan\noptions edns0\n")
        );
        let searches = EtcFiles { searches: vec!["svc".to_owned()], ..EtcFiles::default() };
        assert_eq!(resolv_conf(&searches, node), format!("{NOTE}nameserver 9.9.9.9\noptions edns0\nsearch svc\n"));
        let own = EtcFiles {
            nameservers: vec!["10.89.1.1".parse().unwrap()],
            options: vec!["ndots:2".to_owned()],
            ..EtcFiles::default()
        };
        assert_eq!(resolv_conf(&own, node), format!("{NOTE}nameserver 10.89.1.1\noptions ndots:2\n"));
        let kept = EtcFiles { node_searches: true, ..own.clone() };
        assert_eq!(resolv_conf(&kept, node), format!("{NOTE}nameserver 10.89.1.1\nsearch lan\noptions ndots:2\n"));
    }

    #[test]
    fn the_stub_of_systemd_resolved_is_seen() {
        assert!(names_only_resolved("nameserver 127.0.0.53\noptions edns0\n"));
        assert!(!names_only_resolved("nameserver 127.0.0.53\nnameserver 9.9.9.9\n"));
        assert!(!names_only_resolved(""));
    }
}
