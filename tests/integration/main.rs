//! Tests of the program as a whole, one module a topic.

mod pytorch;
