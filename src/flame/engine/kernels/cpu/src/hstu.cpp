// The library of an HSTU.
#include "hstu.h"
//
#include "functions.h"
