"""Problems with known answers, and the studies that measure solvers on them."""
