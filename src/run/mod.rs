//! A run from its folder to its end: device and data opened, the lock kept, ranks agreed, trained, resumed,
//! stopped.

pub mod find;
pub mod initial;
pub mod lock;
pub mod model;
pub mod ranks;
pub mod resume;
pub mod sensors;
pub mod stop;
pub mod team;
pub mod train;
