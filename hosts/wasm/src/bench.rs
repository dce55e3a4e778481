//! to come
pub fn run(_: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    Ok(())
}
