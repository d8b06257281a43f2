//! One section of a page that several programs write.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Replaces the named section of a page, or adds it at the end.
pub(crate) fn replace(page: &Path, name: &str, text: &str) -> Result<()> {
    let old = match fs::read_to_string(page) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other,
    };
    let old = old.with_context(|| page.display().to_string())?;
    fs::write(page, replaced(&old, name, text)).with_context(|| page.display().to_string())
}

fn replaced(old: &str, name: &str, text: &str) -> String {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"));
    let section = format!("{begin}{}\n{end}", text.trim_end());
    match (old.find(&begin), old.find(&end)) {
        (Some(from), Some(to)) if from < to => format!("{}{section}{}", &old[..from], &old[to + end.len()..]),
        _ if old.is_empty() => section,
        _ => format!("{}\n\n{section}", old.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_added_and_then_replaced_where_it_is() {
        let page = replaced("# Benchmarks\n", "api", "one");
        assert_eq!(page, "# Benchmarks\n\n<!-- api: begin -->\none\n<!-- api: end -->\n");
        let page = replaced(&replaced(&page, "other", "two"), "api", "three\n");
        assert!(page.starts_with("# Benchmarks\n\n<!-- api: begin -->\nthree\n<!-- api: end -->\n"), "{page}");
        assert!(page.contains("two") && !page.contains("one"), "{page}");
    }
}
